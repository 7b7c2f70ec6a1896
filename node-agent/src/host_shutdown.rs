//! The end of the host, as far as volumes go: what was written is brought to the volumes
//! while there still is a network, and after that nothing waits for one any more.
//!
//! Run by rds-csi-shutdown.service, when kubelet, the container runtime and the agent have
//! gone and the network has not. systemd would unmount the volumes too, but as it does
//! local ones: after the network. Mounts that a program makes carry no `_netdev`, and
//! containers, which have the volumes in mount namespaces of their own, may live on until
//! systemd's very last round of SIGKILL. So both are needed here, unmounting and sync(2).

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rds_csi_proto::ids::VolumeId;
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::kernel::dm::DeviceMapper;
use crate::kernel::mounts::{self, MountTable};
use crate::kernel::{DeviceNumber, blocking};
use crate::session::shield;

/// Gigabytes may be waiting to be written, over a slow link. As long as the sessions are
/// there this is worth waiting for; `TimeoutStopSec=` of the unit is longer.
const FLUSH: Duration = Duration::from_secs(120);
/// Asking device-mapper waits for no device.
const ANSWER: Duration = Duration::from_secs(10);
/// How often the sessions are looked at meanwhile.
const LOOK: Duration = Duration::from_millis(250);

/// Writes back, unmounts and lets go of all volumes. Nothing that fails on the way keeps
/// the rest from being done.
pub async fn run() -> ExitCode {
    let shields = match blocking("list the shields", ANSWER, shields).await {
        Ok(shields) => shields,
        Err(error) => return failed(&error),
    };
    let mut flushing = JoinSet::new();
    for (volume, number) in shields.clone() {
        let what = format!("unmount {volume}");
        flushing.spawn(blocking(what, FLUSH, move || unmount_all(number)));
    }
    let sync = tokio::spawn(blocking("sync", FLUSH, || {
        rustix::fs::sync();
        Ok(())
    }));

    let deadline = Instant::now() + FLUSH;
    let (mut code, mut failing) = (ExitCode::SUCCESS, BTreeSet::new());
    while Instant::now() < deadline {
        // A session that is lost now is not waited for: nobody brings it back.
        let_fail(&shields, Which::WithoutPath, &mut failing).await;
        while let Some(flushed) = flushing.try_join_next() {
            if let Ok(Err(error)) = flushed {
                code = failed(&error);
            }
        }
        // sync(2) writes to all disks, and one of somebody else's may hang.
        if flushing.is_empty() && (sync.is_finished() || nothing_open(&shields).await) {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    // Those that are live, too: the network goes next, and whoever still writes then must
    // get an error, not wait for ever.
    let_fail(&shields, Which::All, &mut failing).await;
    code
}

fn failed(error: &Error) -> ExitCode {
    eprintln!("rds-node-agent: {error}");
    ExitCode::FAILURE
}

/// Whether no program and no mount, in any namespace, has a shield open.
async fn nothing_open(shields: &[(VolumeId, DeviceNumber)]) -> bool {
    let names: Vec<_> = shields.iter().map(|(volume, _)| shield::name_of(volume)).collect();
    let looked = blocking("look for open shields", ANSWER, move || {
        let dm = DeviceMapper::open()?;
        for name in names {
            if dm.status(&name)?.is_some_and(|state| state.open_count > 0) {
                return Ok(false);
            }
        }
        Ok(true)
    });
    // Unknown is not closed.
    looked.await.unwrap_or(false)
}

fn shields() -> Result<Vec<(VolumeId, DeviceNumber)>> {
    let dm = DeviceMapper::open()?;
    let mut shields = Vec::new();
    for (volume, seen) in shield::list(&dm)? {
        match seen {
            Ok(seen) => shields.push((volume, seen.number)),
            Err(error) => eprintln!("rds-node-agent: {volume}: {error}"),
        }
    }
    Ok(shields)
}

/// Takes away every mount of a device in the host's namespace, the newest first. A mount in
/// use stays; what it holds is written by sync(2).
fn unmount_all(number: DeviceNumber) -> Result<()> {
    let table = MountTable::read()?;
    for mount in table.of_device(number).iter().rev() {
        match mounts::unmount(&mount.mount_point) {
            Ok(()) => println!("unmounted {}", mount.mount_point.display()),
            Err(error) => println!("{} stays mounted: {error}", mount.mount_point.display()),
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    WithoutPath,
    All,
}

/// Switches shields over to failing I/O; each is switched, and told of, once.
async fn let_fail(
    shields: &[(VolumeId, DeviceNumber)],
    which: Which,
    failing: &mut BTreeSet<VolumeId>,
) {
    for (volume, _) in shields {
        if failing.contains(volume) {
            continue;
        }
        let of = volume.clone();
        let switched = blocking(format!("let I/O of {volume} fail"), ANSWER, move || {
            let dm = DeviceMapper::open()?;
            let Some(seen) = shield::look(&dm, &of)? else { return Ok(true) };
            if which == Which::WithoutPath && seen.path_active {
                return Ok(false);
            }
            shield::fail(&dm, &of)?;
            println!("{of}: I/O that finds no path fails from now on");
            Ok(true)
        });
        match switched.await {
            Ok(true) => {
                failing.insert(volume.clone());
            }
            Ok(false) => {}
            Err(error) => eprintln!("rds-node-agent: {error}"),
        }
    }
}
