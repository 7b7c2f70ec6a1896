//! Pods that write, on real nodes, and what is to be seen of them.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::api::{POD, eventually};
use crate::bench::{Bench, POD_IMAGE};

/// Of a volume as a pod has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Filesystem,
    Block,
}

impl Mode {
    /// What it writes to.
    const fn path(self) -> &'static str {
        match self {
            Self::Filesystem => "/data/records",
            Self::Block => "/dev/disk",
        }
    }
}

/// What a template of a pod has under `spec`: one container that does this with the claim.
pub(crate) fn spec(claim: &str, mode: Mode, action: &[&str]) -> Value {
    let mut words = vec![action[0], mode.path()];
    words.extend(&action[1..]);
    let (user, place, at) = match mode {
        Mode::Filesystem => (1000, "volumeMounts", json!([{"name": "data", "mountPath": "/data"}])),
        // A device node belongs to root, as kubelet makes it.
        Mode::Block => (0, "volumeDevices", json!([{"name": "data", "devicePath": mode.path()}])),
    };
    json!({
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsUser": user, "fsGroup": 1000},
        "containers": [{"name": "main", "image": POD_IMAGE, "imagePullPolicy": "Never",
            "args": words, place: at}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
    })
}

/// The same as a pod, on this node or where the scheduler wants it.
pub(crate) fn pod(ns: &str, name: &str, spec: &Value, node: Option<&str>) -> Value {
    let mut pod = json!({"apiVersion": POD.0, "kind": POD.1,
        "metadata": {"name": name, "namespace": ns}, "spec": spec});
    if let Some(node) = node {
        // Not by its nodeName: the scheduler is to do its part.
        pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    }
    pod
}

/// A pod that writes, by its name.
pub(crate) struct Writer<'a> {
    bench: &'a Bench,
    pub(crate) ns: String,
    pub(crate) name: String,
}

impl<'a> Writer<'a> {
    pub(crate) fn of(bench: &'a Bench, ns: &str, name: &str) -> Self {
        Self { bench, ns: ns.to_owned(), name: name.to_owned() }
    }

    /// Starts one, and waits until it writes.
    pub(crate) async fn start(
        bench: &'a Bench,
        ns: &str,
        name: &str,
        claim: &str,
        mode: Mode,
        node: Option<&str>,
    ) -> anyhow::Result<Self> {
        bench.kube.apply(&pod(ns, name, &spec(claim, mode, &["write"]), node)).await?;
        let writer = Self::of(bench, ns, name);
        writer.flows().await?;
        Ok(writer)
    }

    pub(crate) async fn object(&self) -> anyhow::Result<Value> {
        let pod = self.bench.kube.get(POD, Some(&self.ns), &self.name).await?;
        pod.with_context(|| format!("no pod {}", self.name))
    }

    /// Where it runs.
    pub(crate) async fn node(&self) -> anyhow::Result<String> {
        let node = self.object().await?["spec"]["nodeName"].as_str().map(str::to_owned);
        node.with_context(|| format!("pod {} is on no node", self.name))
    }

    /// What it printed, of its last containers, as kubelet keeps it.
    pub(crate) async fn printed(&self) -> anyhow::Result<String> {
        let pod = self.object().await?;
        let uid = pod["metadata"]["uid"].as_str().context("no uid")?;
        let node = pod["spec"]["nodeName"].as_str().context("on no node")?;
        let script = format!("cat /var/log/pods/{}_{}_{uid}/main/*.log", self.ns, self.name);
        self.bench.guests()?.shell(node, &script)
    }

    /// The newest record that it told of, and its longest write until then.
    async fn told(&self) -> anyhow::Result<Option<(u64, Duration)>> {
        let Ok(printed) = self.printed().await else { return Ok(None) };
        let told = printed.lines().rev().find_map(|line| {
            let (_, told) = line.split_once("wrote ")?;
            let (number, longest) = told.split_once(" longest ")?;
            Some((number.parse().ok()?, Duration::from_millis(longest.trim().parse().ok()?)))
        });
        Ok(told)
    }

    /// The newest record that it told of.
    pub(crate) async fn newest(&self) -> anyhow::Result<u64> {
        Ok(self.told().await?.with_context(|| format!("{} told nothing", self.name))?.0)
    }

    /// What follows these words in what it prints, once it does.
    pub(crate) async fn says(&self, words: &str) -> anyhow::Result<String> {
        eventually(&format!("pod {} says {words:?}", self.name), || async {
            let Ok(printed) = self.printed().await else { return Ok(None) };
            let rest = printed.lines().rev().find_map(|line| line.split_once(words));
            Ok(rest.map(|(_, rest)| rest.trim().to_owned()))
        })
        .await
    }

    /// The newest record that was there when it began.
    pub(crate) async fn found(&self) -> anyhow::Result<u64> {
        let found = self.says("found ").await?;
        found.parse().with_context(|| format!("what is {found:?}?"))
    }

    /// Until it has written more than now.
    pub(crate) async fn flows(&self) -> anyhow::Result<()> {
        let before = self.told().await?.map_or(0, |(number, _)| number);
        let what = format!("pod {} writes, after record {before}", self.name);
        let done = eventually(&what, || async {
            Ok(self.told().await?.filter(|(number, _)| *number > before).map(drop))
        })
        .await;
        if let Err(error) = done {
            let mut pod = self.object().await?;
            pod["metadata"]["managedFields"] = Value::Null;
            let printed = self.printed().await.unwrap_or_default();
            let end: Vec<_> = printed.lines().rev().take(5).collect();
            return Err(error.context(format!("it printed {end:?} and is {}", pod["status"])));
        }
        Ok(())
    }

    /// It never failed, was never started again; gives the longest of its writes.
    pub(crate) async fn undisturbed(&self) -> anyhow::Result<Duration> {
        let pod = self.object().await?;
        let container = &pod["status"]["containerStatuses"][0];
        ensure!(container["restartCount"] == 0, "{} was started again: {container}", self.name);
        ensure!(container["ready"] == true, "{} is not ready: {container}", self.name);
        let printed = self.printed().await?;
        ensure!(!printed.contains("error"), "{} had an error: {printed}", self.name);
        Ok(self.told().await?.context("it told nothing")?.1)
    }

    /// Removes it, as a user does, and waits until kubelet has ended it.
    pub(crate) async fn end(&self) -> anyhow::Result<()> {
        self.bench.kube.delete_softly(POD, &self.ns, &self.name).await?;
        self.bench.kube.until_gone(POD, Some(&self.ns), &self.name).await
    }
}

/// Runs a pod that looks at each record of a volume that nobody writes to; gives the newest.
pub(crate) async fn check(
    bench: &Bench,
    ns: &str,
    claim: &str,
    mode: Mode,
    node: Option<&str>,
) -> anyhow::Result<u64> {
    let mut spec = spec(claim, mode, &["check"]);
    spec["restartPolicy"] = "Never".into();
    let name = format!("check-{claim}");
    bench.kube.apply(&pod(ns, &name, &spec, node)).await?;
    let ended =
        |pod: &Value| ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
    let pod = bench.kube.until(POD, Some(ns), &name, "at its end", ended).await?;
    let checker = Writer::of(bench, ns, &name);
    let printed = checker.printed().await?;
    ensure!(pod["status"]["phase"] == "Succeeded", "{claim}: {printed}");
    checker.end().await?;
    let newest = printed.lines().find_map(|line| line.split_once("whole ")?.1.trim().parse().ok());
    newest.with_context(|| format!("what is {printed:?}?"))
}
