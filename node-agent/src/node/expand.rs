//! NodeExpandVolume: grow the file system, online, to the size that the device has.
//!
//! The keeper makes the device itself larger, when the export comes back with its new
//! size; until then this call is told to come again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rds_csi_proto::csi::NodeExpandVolumeRequest;
use rds_csi_proto::ids::VolumeId;
use tracing::info;

use super::paths::GivenPath;
use super::request::known_volume_id;
use super::sessions::{self, Sessions};
use super::{LOCAL, Node};
use crate::crash;
use crate::error::{Error, Result};
use crate::kernel::mounts::{Mount, MountTable};
use crate::kernel::{DeviceNumber, programs};
use crate::session::Attached;

/// How long the keeper gets to notice that the export has grown.
const GROWN: Duration = Duration::from_secs(40);
const GROWN_POLL: Duration = Duration::from_millis(500);
/// Growing writes metadata in proportion to what is added.
pub(super) const GROW: Duration = Duration::from_secs(600);

/// Grows a volume's file system; returns the device's size in bytes.
///
/// # Errors
/// [`Error::NotFound`] if it is not at that path; [`Error::Unavailable`] while the device
/// is not as large as was asked for.
pub(crate) async fn expand<S: Sessions>(
    node: &Node<S>,
    request: &NodeExpandVolumeRequest,
) -> Result<u64> {
    let volume = known_volume_id(&request.volume_id)?;
    super::request::present("volume_path", &request.volume_path)?;
    let missing = || {
        Error::NotFound(format!("volume {volume} is not at {:?} on this node", request.volume_path))
    };
    let view = node.sessions.view(&volume).ok_or_else(missing)?;
    let device = sessions::device(&view)?;
    let given = GivenPath::parse("volume_path", &request.volume_path).map_err(|_| missing())?;
    let operation = node.locks.begin(&volume, "NodeExpandVolume")?;
    let number = device.number;
    let place =
        operation.run("reading the mount table", LOCAL, move || place(&given, number)).await?;
    let place = place.ok_or_else(missing)?;

    let required = request.capacity_range.as_ref().map_or(0, |r| r.required_bytes);
    let required = u64::try_from(required).unwrap_or(0);
    let size = wait_for(&node.sessions, &volume, required, GROWN).await?;
    crash::point("expand.sized");
    if let Place::Filesystem { fs_type, path } = place {
        let (program, arguments) = grow(&fs_type, &path, &device)?;
        programs::run(&program, &arguments, &device.path, GROW, operation.clone()).await?;
        crash::point("expand.grown");
        info!(%volume, size, fs_type, "file system grown");
    }
    Ok(size)
}

enum Place {
    Filesystem { fs_type: String, path: PathBuf },
    Block,
}

fn place(given: &GivenPath, number: DeviceNumber) -> Result<Option<Place>> {
    let Some(path) = given.resolve()? else { return Ok(None) };
    let table = MountTable::read()?;
    let layers = table.at(&path);
    // Growing goes through a mount that may write; any of the volume's mounts will do.
    let writable = |m: &&Mount| !m.is_read_only() && m.root == Path::new("/");
    Ok(match layers.last() {
        Some(top) if top.is_of(number) => {
            let chosen = table.of_device(number).into_iter().find(writable).unwrap_or(top);
            let path = chosen.mount_point.clone();
            Some(Place::Filesystem { fs_type: chosen.fs_type.clone(), path })
        }
        Some(top) if top.fs_type == "devtmpfs" => {
            DeviceNumber::of_path(&path).is_ok_and(|n| n == number).then_some(Place::Block)
        }
        _ => None,
    })
}

async fn wait_for<S: Sessions>(
    sessions: &S,
    volume: &VolumeId,
    required: u64,
    patience: Duration,
) -> Result<u64> {
    let begun = Instant::now();
    loop {
        let size = sessions.view(volume).and_then(|v| v.device).map_or(0, |d| d.size_bytes);
        if size > 0 && size >= required {
            return Ok(size);
        }
        if begun.elapsed() > patience {
            return Err(Error::Unavailable(format!(
                "the device of volume {volume} has {size} bytes, not yet the {required} that were asked \
                 for; hosts see a new size only after the export was switched off and on, try again"
            )));
        }
        tokio::time::sleep(GROWN_POLL).await;
    }
}

pub(super) fn grow(fs_type: &str, path: &Path, device: &Attached) -> Result<(String, Vec<String>)> {
    let mount = path.display().to_string();
    let (program, arguments) = match fs_type {
        "ext4" | "ext3" => ("resize2fs", vec![device.path.display().to_string()]),
        "xfs" => ("xfs_growfs", vec!["-d".to_owned(), mount]),
        "btrfs" => {
            ("btrfs", vec!["filesystem".to_owned(), "resize".to_owned(), "max".to_owned(), mount])
        }
        other => {
            return Err(Error::Precondition(format!("{other} cannot be grown by this driver")));
        }
    };
    Ok((program.to_owned(), arguments))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rds_csi_proto::agent::State;
    use rds_csi_proto::ids::{HostNqn, Portal};

    use super::*;
    use crate::notices::Notices;
    use crate::session::{Content, SessionSpec, SessionView};

    /// One session, whose device has so many bytes; 0: no device.
    #[derive(Clone)]
    struct Sized(Arc<AtomicU64>, Notices);

    fn volume() -> VolumeId {
        "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11".parse().unwrap()
    }

    impl Sessions for Sized {
        fn view(&self, _: &VolumeId) -> Option<SessionView> {
            let size_bytes = self.0.load(Ordering::SeqCst);
            let number = DeviceNumber { major: 252, minor: 0 };
            let device = Attached { path: "/dev/dm-0".into(), number, size_bytes };
            Some(SessionView {
                spec: SessionSpec {
                    volume: volume(),
                    nqn: "nqn.2000-02.com.mikrotik:x".parse().unwrap(),
                    host_nqn: HostNqn::random(),
                    portal: Portal::parse("10.0.0.2", "4420").unwrap(),
                    ctrl_loss_tmo: -1,
                    reconnect_delay: 1,
                    keep_alive_tmo: 5,
                    nr_io_queues: 1,
                    shield: true,
                    io_timeout_secs: 0,
                    reattach_check_secs: 60,
                    arrival: None,
                },
                state: State::Live,
                since_unix_ms: 0,
                reason: String::new(),
                device: (size_bytes > 0).then_some(device),
                namespace: None,
                controller: None,
                failing_io: false,
                outages: 0,
                last_outage_ms: 0,
                attempts: 0,
            })
        }
        fn views(&self) -> Vec<SessionView> {
            Vec::new()
        }
        async fn attach(&self, _: SessionSpec, _: Duration) -> Result<Attached> {
            Err(Error::Unavailable("not here".into()))
        }
        async fn set_content(&self, _: &VolumeId, _: Content) -> Result<()> {
            Ok(())
        }
        async fn detach(&self, _: &VolumeId, _: Duration) -> Result<()> {
            Ok(())
        }
        async fn fail(&self, _: &VolumeId) -> Result<()> {
            Ok(())
        }
        fn notices(&self) -> &Notices {
            &self.1
        }
    }

    const OLD: u64 = 1 << 30;
    const PATIENCE: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn a_device_that_has_not_grown_is_not_called_grown() {
        for small in [OLD, 0] {
            let sessions = Sized(Arc::new(AtomicU64::new(small)), Notices::default());
            let began = Instant::now();
            let error = wait_for(&sessions, &volume(), OLD + 1, PATIENCE).await.unwrap_err();
            assert_eq!(error.code(), tonic::Code::Unavailable, "the resizer is to come again");
            assert!(error.to_string().contains(&format!("{small} bytes, not yet")), "{error}");
            // Within the patience of whoever calls.
            assert!((PATIENCE..GROWN).contains(&began.elapsed()));
        }
    }

    #[tokio::test]
    async fn a_device_that_grows_late_is_waited_for_and_its_real_size_is_told() {
        let sessions = Sized(Arc::new(AtomicU64::new(OLD)), Notices::default());
        let later = sessions.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GROWN_POLL).await;
            later.0.store(3 * OLD, Ordering::SeqCst);
        });
        assert_eq!(wait_for(&sessions, &volume(), 2 * OLD, GROWN).await.unwrap(), 3 * OLD);
        // Nothing is asked for: the file system is grown to what there is.
        assert_eq!(wait_for(&sessions, &volume(), 0, GROWN).await.unwrap(), 3 * OLD);
    }
}
