//! A node on which the Go driver of the same name still has a volume: connected under the
//! host's own NQN, formatted and mounted as it comes. Our agent must not take it away from its
//! users, and has it with all its data when they have gone.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tonic::Code;

use crate::csi::{Csi, Volume, filesystem};
use crate::demo::status;
use crate::process::run;
use crate::refusals::refused;
use crate::report::Report;
use crate::stack::APPLIANCE;

const VOLUME: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e21";
const BYTES: i64 = 64 << 20;
/// Where the other driver has it.
const THERE: &str = "/scratch/of-another-driver";
/// What `/etc/nvme/hostnqn` would have.
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:0c7a6a0b-7e11-4a3c-8f54-3f1e1c0a9d6e";

pub(crate) async fn run_on(report: &mut Report, csi: &mut Csi) {
    let result = tell(report, csi).await;
    report.case("a node is switched over from another driver", result);
}

async fn tell(report: &mut Report, csi: &mut Csi) -> Result<()> {
    let made = csi.create(VOLUME, BYTES, filesystem("ext4"), HashMap::new()).await;
    let mut volume = made.map_err(status("create"))?;
    csi.attach(&mut volume).await.map_err(status("attach"))?;
    volume.volume_context = attributes(&volume);
    let nqn = volume.volume_context.get("nqn").context("no NQN")?.clone();
    open_to_any_host(&nqn)?;
    let device = staged_by_the_other(&nqn)?;
    let before = controllers_of(&nqn)?;

    let says = [before.first().map_or("", String::as_str), HOST, THERE, "docs/switch-over.md"];
    let answer = csi.stage(&volume).await;
    report.case(
        "a volume that another driver has mounted here",
        refused(answer, Code::FailedPrecondition, &says),
    );
    ensure!(controllers_of(&nqn)? == before, "its controller was {before:?}");
    fs::write(format!("{THERE}/after"), "still writable")?;
    run(&["sync", "-f", THERE])?;

    let answer = csi.unstage(&volume).await;
    report.case(
        "a volume that another driver still has is not called unstaged",
        refused(answer, Code::FailedPrecondition, &[HOST, &nqn, "nvme disconnect"]),
    );

    // Unmounted, and then forgotten, as a driver does that takes a failed disconnect for none.
    run(&["umount", THERE])?;
    let open = fs::File::open(&device)?;
    let answer = csi.stage(&volume).await;
    report.case(
        "a volume whose device is open over another driver's connection",
        refused(answer, Code::FailedPrecondition, &["rds-scenario", HOST]),
    );
    drop(open);
    csi.mount(&volume).await.map_err(status("stage and publish when nobody uses it"))?;
    for (name, text) in [("before", "written by the other"), ("after", "still writable")] {
        let read = fs::read_to_string(volume.target.join(name))?;
        ensure!(read == text, "{name} has {read:?}");
    }
    let now = controllers_of(&nqn)?;
    ensure!(now.len() == 1, "two ways to one volume: {now:?}");
    csi.unmount(&volume).await.map_err(status("unpublish and unstage"))?;
    csi.detach(&volume).await.map_err(status("detach"))?;
    csi.delete(&volume).await.map_err(status("delete"))?;
    Ok(())
}

/// What that driver writes into a PersistentVolume.
fn attributes(volume: &Volume) -> HashMap<String, String> {
    let mut all = HashMap::new();
    for key in ["rdsAddress", "nvmeAddress", "nvmePort", "nqn", "volumePath"] {
        all.extend(volume.volume_context.get(key).map(|v| (key.to_owned(), v.clone())));
    }
    for (key, value) in [
        ("ctrlLossTmo", "-1"),
        ("reconnectDelay", "5"),
        ("keepAliveTmo", "0"),
        ("migrationTimeoutSeconds", "300"),
    ] {
        all.insert(key.to_owned(), value.to_owned());
    }
    all
}

/// As all its exports are.
fn open_to_any_host(nqn: &str) -> Result<()> {
    let subsystem = format!("/sys/kernel/config/nvmet/subsystems/{nqn}");
    for host in fs::read_dir(format!("{subsystem}/allowed_hosts"))?.flatten() {
        fs::remove_file(host.path())?;
    }
    Ok(fs::write(format!("{subsystem}/attr_allow_any_host"), "1")?)
}

/// Connected, formatted and mounted, with the commands that it runs; its device.
fn staged_by_the_other(nqn: &str) -> Result<String> {
    let id = HOST.rsplit(':').next().unwrap_or_default();
    let connect = ["nvme", "connect", "-t", "tcp", "-a", APPLIANCE, "-s", "4420", "-n", nqn];
    run(&[&connect[..], &["-l", "-1", "-c", "5", "-q", HOST, "-I", id]].concat())?;
    let device = device_of(nqn)?;
    run(&["mkfs.ext4", "-q", "-F", &device])?;
    fs::create_dir_all(THERE)?;
    run(&["mount", "-t", "ext4", &device, THERE])?;
    fs::write(format!("{THERE}/before"), "written by the other")?;
    run(&["sync", "-f", THERE])?;
    Ok(device)
}

fn controllers_of(nqn: &str) -> Result<Vec<String>> {
    let of = |dir: &Path| fs::read_to_string(dir.join("subsysnqn")).unwrap_or_default();
    let all = fs::read_dir("/sys/class/nvme")?.flatten().map(|entry| entry.path());
    let names = all
        .filter(|dir| of(dir).trim() == nqn)
        .filter_map(|dir| dir.file_name().map(|name| name.to_string_lossy().into_owned()));
    Ok(names.collect())
}

/// Its namespace appears a moment after the controller.
fn device_of(nqn: &str) -> Result<String> {
    for _ in 0..100 {
        for entry in fs::read_dir("/sys/block")?.flatten() {
            let of = |file: &str| {
                fs::read_to_string(entry.path().join(file)).unwrap_or_default().trim().to_owned()
            };
            if of("device/subsysnqn") == nqn {
                let node = format!("/dev/{}", entry.file_name().to_string_lossy());
                if Path::new(&node).exists() {
                    return Ok(node);
                }
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    bail!("no device of {nqn}")
}
