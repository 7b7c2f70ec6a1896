//! Carries out what the machine asks for, each with a deadline.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rds_csi_proto::ids::VolumeId;
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use crate::crash;
use crate::error::{Error, Result};
use crate::kernel::dm::DeviceMapper;
use crate::kernel::fabrics::Held;
use crate::kernel::refusal::Answer;
use crate::kernel::sysfs::{self, ControllerState, Namespace};
use crate::kernel::{DeviceNumber, blocking, fabrics, iostat, refusal};
use crate::metrics::Metrics;
use crate::metrics::labels::Attempt;

use super::answerers::Answerers;
use super::cause;
use super::content::{self, Samples, Since, Verdict};
use super::machine::{Action, ConnectFailure, Outcome};
use super::portal::Portals;
use super::shield::Terms;
use super::{Content, SessionSpec, shield};

/// A portal that does not answer a TCP handshake in this time is not there. Without waiting
/// for that first, the kernel's own connect would hold the attempt for several seconds.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
/// The kernel tries each queue's TCP connection twice (3 s) and then speaks NVMe to it; a
/// target that is still booting can take long. The write is abandoned after this time and
/// its outcome read from sysfs.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// Reading a few blocks and swapping a table; bounded by the target's answers.
const MAP_DEADLINE: Duration = Duration::from_secs(20);
/// Deleting a controller whose target is gone waits for its last command to time out.
pub(super) const DELETE_DEADLINE: Duration = Duration::from_secs(60);
/// Asking the target takes a few round trips; a target that is slower is asked again later.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// A refusal of the host ends an attachment for good, so it has to be said twice. An export
/// that is being made may be there a moment before its allow list is.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// A word to the kernel that it answers at once.
const WORD_DEADLINE: Duration = Duration::from_secs(5);

/// What an action needs to know beside itself.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) spec: SessionSpec,
    pub(super) content: Content,
    pub(super) samples: Samples,
    pub(super) portals: Portals,
    /// Bounds how many volumes connect at once: after an outage of the appliance all of
    /// them want to.
    pub(super) connects: Arc<Semaphore>,
    pub(super) answerers: Answerers,
    pub(super) metrics: Arc<Metrics>,
}

/// Does it, and says how it ended.
pub(super) async fn carry_out(action: Action, context: Context) -> Outcome {
    let volume = context.spec.volume.clone();
    match action {
        Action::Connect => Outcome::Connected(connect(context).await),
        Action::AskTarget => Outcome::Asked(ask(&context.spec).await.and_then(refused)),
        Action::AskAttachment => Outcome::Attachment(context.answerers.ask(&context.spec).await),
        Action::Rescan(name) => {
            let nqn = context.spec.nqn;
            let rescan = move || Held::find(&name, nqn.as_str())?.map_or(Ok(()), |c| c.rescan());
            report(&volume, word("rescan", rescan).await);
            Outcome::Rescanned
        }
        Action::Delete(name) => {
            report(&volume, delete(&context.spec, name, |_| true).await);
            Outcome::Deleted
        }
        Action::GiveUp(name) => {
            let stuck = |state| state != ControllerState::Live;
            report(&volume, delete(&context.spec, name, stuck).await);
            Outcome::Deleted
        }
        Action::Map(namespace) => map(context, namespace).await,
        Action::FailIo => {
            let id = volume.clone();
            let failed =
                word("fail queued I/O", move || shield::fail(&DeviceMapper::open()?, &id)).await;
            Outcome::FailedIo(failed.map_err(|e| e.to_string()))
        }
    }
}

fn report(volume: &VolumeId, result: Result<()>) {
    if let Err(error) = result {
        warn!(%volume, %error, "it is looked at again");
    }
}

/// Deletes a controller of this volume's, if it still is one and in a state that `when` is
/// true of.
async fn delete(
    spec: &SessionSpec,
    name: String,
    when: impl FnOnce(ControllerState) -> bool + Send + 'static,
) -> Result<()> {
    let nqn = spec.nqn.clone();
    blocking(format!("delete {name}"), DELETE_DEADLINE, move || {
        let Some(controller) = Held::find(&name, nqn.as_str())? else { return Ok(()) };
        if controller.state()?.is_some_and(when) { controller.delete() } else { Ok(()) }
    })
    .await
}

async fn word(
    what: &'static str,
    call: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    blocking(what, WORD_DEADLINE, call).await
}

async fn connect(context: Context) -> Result<(), ConnectFailure> {
    let refuse =
        |reason: String, port_closed| ConnectFailure { reason, port_closed, host_refused: false };
    let portal = context.spec.portal;
    let watched = context.portals.watch(portal.socket_addr());
    if let Err(error) = watched.answers(PROBE_DEADLINE).await {
        let closed = error.kind() == io::ErrorKind::ConnectionRefused;
        let outcome = if closed { Attempt::PortClosed } else { Attempt::Unreachable };
        context.metrics.attempted(outcome);
        return Err(refuse(format!("the portal {portal} does not answer: {error}"), closed));
    }
    // Only now: volumes of an appliance that is away must not hold up those of another.
    let Ok(permit) = context.connects.clone().acquire_owned().await else {
        return Err(refuse("the agent is stopping".into(), false));
    };
    let spec = context.spec.clone();
    let connected = blocking(format!("connect to {}", spec.nqn), CONNECT_DEADLINE, move || {
        crash::point("connect.begin");
        let connected = fabrics::connect(&spec);
        crash::point("connect.done");
        connected
    });
    match connected.await {
        Ok(instance) => {
            context.metrics.attempted(Attempt::Connected);
            info!(volume = %context.spec.volume, controller = format!("nvme{instance}"), "connected");
            Ok(())
        }
        // There is one already: a state to look at, not a success and not a failure.
        Err(Error::Kernel { source, .. })
            if matches!(source.raw_os_error(), Some(libc::EALREADY | libc::EEXIST)) =>
        {
            context.metrics.attempted(Attempt::Existed);
            Ok(())
        }
        // What the kernel says to every NVMe status: only the target knows which it was.
        Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EIO) => {
            drop(permit);
            let answer = ask(&context.spec).await;
            context.metrics.attempted(cause::of_answer(answer));
            Err(answer.and_then(refused).unwrap_or_else(|| {
                refuse(format!("the target refused to connect: {source}"), false)
            }))
        }
        Err(error) => {
            context.metrics.attempted(cause::of_error(&error));
            let closed = matches!(&error, Error::Kernel { source, .. }
                if source.kind() == io::ErrorKind::ConnectionRefused);
            Err(refuse(error.to_string(), closed))
        }
    }
}

/// What the target says to a Connect of this attachment; `None` if it says nothing that
/// could be understood. Unknown is neither refused nor admitted.
async fn ask(spec: &SessionSpec) -> Option<Answer> {
    match ask_once(spec).await {
        Some(Answer::HostRefused) => {
            tokio::time::sleep(ASK_AGAIN).await;
            ask_once(spec).await
        }
        answer => answer,
    }
}

async fn ask_once(spec: &SessionSpec) -> Option<Answer> {
    let (portal, nqn, host_nqn) =
        (spec.portal.socket_addr(), spec.nqn.clone(), spec.host_nqn.clone());
    let asked = blocking("ask the target why it refuses", ASK_DEADLINE, move || {
        refusal::ask(portal, &nqn, &host_nqn)
    });
    match asked.await {
        Ok(answer) => {
            debug!(volume = %spec.volume, ?answer, "asked the target");
            Some(answer)
        }
        Err(error) => {
            debug!(volume = %spec.volume, %error, "the target does not say why it refuses");
            None
        }
    }
}

/// The failure that an answer stands for; none if we would be admitted by now.
fn refused(answer: Answer) -> Option<ConnectFailure> {
    let reason = match answer {
        Answer::Admitted => return None,
        Answer::HostRefused => {
            "the target no longer admits this attachment (Connect Invalid Host)".to_owned()
        }
        Answer::NoSuchSubsystem => "not exported at this moment (no such subsystem)".to_owned(),
        Answer::Other(status) => {
            format!("the target refuses to connect with NVMe status {status:#05x}")
        }
    };
    let host_refused = answer == Answer::HostRefused;
    Some(ConnectFailure { reason, port_closed: false, host_refused })
}

async fn map(context: Context, namespace: Namespace) -> Outcome {
    let mapped = namespace.clone();
    let until = Instant::now() + MAP_DEADLINE;
    let what = format!("map {}", namespace.name);
    match blocking(what, MAP_DEADLINE, move || check_and_map(&context, &namespace, until)).await {
        Ok(Verdict::Same) => Outcome::Mapped(mapped),
        Ok(Verdict::Different(why)) => {
            Outcome::Different(format!("{} is not this volume: {why}", mapped.name))
        }
        Err(error) => Outcome::MapFailed(error.to_string()),
    }
}

/// What may have changed on a volume since it was sampled, by the counters of its shield. Taken
/// for 0 when they cannot be read, they would make the volume's own writes another volume's.
fn since(samples: &Samples, shield: DeviceNumber) -> Result<Since> {
    let counters = sysfs::bytes_written(shield).zip(iostat::Reader::default().read(shield));
    let (written, io) = counters.ok_or_else(|| {
        Error::Unavailable(format!("what was written through device {shield} cannot be counted"))
    })?;
    Ok(Since {
        written_bytes: written.saturating_sub(samples.written_bytes),
        in_flight: io.in_flight,
    })
}

/// Where others connect as the same host: the kernel would not ask before it lets I/O go on.
fn leave_reconnecting_to_us(spec: &SessionSpec) -> Result<()> {
    let is_ours =
        |c: &&sysfs::Controller| c.nqn == spec.nqn.as_str() && c.host_nqn == spec.host_nqn.as_str();
    for controller in sysfs::controllers()?.iter().filter(is_ours) {
        if let Some(held) = Held::find(&controller.name, &controller.nqn)? {
            held.never_reconnect()?;
        }
    }
    Ok(())
}

fn check_and_map(context: &Context, namespace: &Namespace, until: Instant) -> Result<Verdict> {
    // Held open from the check to the mapping, so that its number cannot be given to
    // another device between the two.
    let began = Instant::now();
    let device = shield::open_namespace(namespace)?;
    let opened = began.elapsed();
    let dm = DeviceMapper::open()?;
    let volume = &context.spec.volume;
    let seen = shield::look(&dm, volume)?;
    if let Some(seen) = seen.as_ref().filter(|seen| seen.size_bytes > namespace.size_bytes) {
        return Ok(Verdict::Different(format!(
            "it has {} bytes, less than the {} that its users know",
            namespace.size_bytes, seen.size_bytes
        )));
    }
    let while_active =
        seen.as_ref().is_some_and(|s| s.path == Some(namespace.number) && s.path_active);
    let since = match &seen {
        // One that never had a table (the agent was killed while it made it) has carried no I/O,
        // and the kernel keeps no counters of it.
        Some(seen) if seen.size_bytes > 0 => since(&context.samples, seen.number)?,
        _ => Since::default(),
    };
    let verdict = content::compare(&device, &context.content, &context.samples, since)
        .map_err(Error::kernel("read", &namespace.name))?;
    let compared = began.elapsed();
    if context.spec.arrival.is_some() {
        leave_reconnecting_to_us(&context.spec)?;
    }
    if verdict == Verdict::Same && context.spec.shield {
        crash::point("map.checked");
        let seen = shield::map(&dm, volume, namespace, Terms { until, while_active })?;
        info!(%volume, namespace = namespace.name, device = %shield::node_of(seen.number).display(), bytes = seen.size_bytes, "I/O goes to this namespace");
        debug!(%volume, ?opened, ?compared, mapped = ?began.elapsed(), "how long it took");
    }
    Ok(verdict)
}
