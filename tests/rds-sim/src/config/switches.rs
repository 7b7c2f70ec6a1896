//! Each guess about the appliance, and how long things take.

use clap::Args;

use super::values::*;
use crate::ros::disk::ReadBack;

/// What nobody has verified on an appliance, and how long things take.
#[derive(Debug, Clone, Args)]
pub struct Switches {
    #[arg(long, env = "RDS_CSI_IDENTITY", value_enum, default_value = "random")]
    pub identity: Identity,
    /// `nvme-tcp-server-allow-host-name` may be a comma list. Default no: it is a scalar in the schema.
    #[arg(long, env = "RDS_CSI_ALLOW_HOST_LIST")]
    pub allow_host_list: bool,
    /// Turning an export off kills live controllers, as vanilla nvmet does. With `false` new connects
    /// are refused (as an invalid host) and live ones go on.
    #[arg(long, env = "RDS_CSI_EXPORT_OFF_KILLS", default_value_t = true, action = clap::ArgAction::Set)]
    pub export_off_kills: bool,
    #[arg(long, env = "RDS_CSI_EXISTING_FILE", value_enum, default_value = "reuse")]
    pub existing_file: ExistingFile,
    #[arg(
        long,
        env = "RDS_CSI_EXISTING_FILE_TEXT",
        default_value = "failure: file already exists"
    )]
    pub existing_file_text: String,
    #[arg(long, env = "RDS_CSI_FULL_POOL", value_enum, default_value = "refuse")]
    pub full_pool: FullPool,
    #[arg(long, env = "RDS_CSI_FULL_POOL_TEXT", default_value = "failure: not enough space")]
    pub full_pool_text: String,
    #[arg(long, env = "RDS_CSI_BAD_PATH_TEXT", default_value = "failure: no such directory")]
    pub bad_path_text: String,
    /// `/disk add` makes missing directories of `file-path`.
    #[arg(long, env = "RDS_CSI_CREATE_PARENTS")]
    pub create_parents: bool,
    /// `/disk set file-size` may be smaller than before.
    #[arg(long, env = "RDS_CSI_ALLOW_SHRINK")]
    pub allow_shrink: bool,
    #[arg(long, env = "RDS_CSI_ALLOCATE", value_enum, default_value = "full")]
    pub allocate: Allocate,
    #[arg(long, env = "RDS_CSI_EXPORT_READ_BACK", value_enum, default_value = "actual")]
    pub export_read_back: ExportReadBack,
    #[arg(long, env = "RDS_CSI_NQN_READ_BACK", value_enum, default_value = "effective")]
    pub nqn_read_back: NqnReadBack,
    #[arg(long, env = "RDS_CSI_IDS_AFTER_REBOOT", value_enum, default_value = "keep")]
    pub ids_after_reboot: IdsAfterReboot,
    #[arg(long, env = "RDS_CSI_SSH_JSON", value_enum, default_value = "typed")]
    pub ssh_json: SshJson,
    /// Console errors name the command and line, as in `no such item (/disk/set; line 1)`.
    #[arg(long, env = "RDS_CSI_SSH_ERROR_CONTEXT")]
    pub ssh_error_context: bool,
    /// Body of the first 200 answers after a boot: `html`, `empty`, `empty-list` or a literal text.
    #[arg(long, env = "RDS_CSI_BOOT_WRONG_BODY", default_value = "html")]
    pub boot_wrong_body: String,
    /// Length of each stage after a boot: refused, reset, 401, wrong body.
    #[arg(long, env = "RDS_CSI_BOOT_STAGE_MS", default_value_t = 500)]
    pub boot_stage_ms: u64,
    /// Added to each management request.
    #[arg(long, env = "RDS_CSI_LATENCY_MS", default_value_t = 0)]
    pub latency_ms: u64,
    /// From `add` to flag `B` and a size.
    #[arg(long, env = "RDS_CSI_CREATE_DELAY_MS", default_value_t = 100)]
    pub create_delay_ms: u64,
    /// From `nvme-tcp-export=yes` (and flag `B`) to flag `t`.
    #[arg(long, env = "RDS_CSI_EXPORT_DELAY_MS", default_value_t = 200)]
    pub export_delay_ms: u64,
    /// From `nvme-tcp-export=no` to the export's end.
    #[arg(long, env = "RDS_CSI_UNEXPORT_DELAY_MS", default_value_t = 50)]
    pub unexport_delay_ms: u64,
    /// A REST request is cut after this (manual: 60 s) and goes on running.
    #[arg(long, env = "RDS_CSI_REST_CUT_MS", default_value_t = 60_000)]
    pub rest_cut_ms: u64,
    /// What `/disk print` says of a disk that was grown while it is exported. Hosts see the new size
    /// after a toggle only.
    #[arg(long, env = "RDS_CSI_GROWN_SIZE", value_enum, default_value = "immediately")]
    pub grown_size: GrownSize,
    /// `file-size` may be changed while the disk is exported.
    #[arg(long, env = "RDS_CSI_GROW_EXPORTED", default_value_t = true, action = clap::ArgAction::Set)]
    pub grow_exported: bool,
    /// Physical disks in `/disk print`, as members of the first pool's RAID.
    #[arg(long, env = "RDS_CSI_PHYSICAL_DISKS", default_value_t = 0)]
    pub physical_disks: u32,
    /// A REST request that was cut lets the user's next one in, although it goes on running. Default
    /// no: requests of one user run one at a time, and nobody has seen an exception.
    #[arg(long, env = "RDS_CSI_CUT_FREES_QUEUE", default_value_t = false, action = clap::ArgAction::Set)]
    pub cut_frees_queue: bool,
    /// Speed of `/file/copy` and `/disk/copy`, such as `50M`; 0 is as fast as the host.
    #[arg(long, env = "RDS_CSI_COPY_BYTES_PER_SECOND", default_value = "0", value_parser = bytes)]
    pub copy_bytes_per_second: u64,
    #[arg(long, env = "RDS_CSI_COPY_PROGRESS", value_enum, default_value = "growing")]
    pub copy_progress: CopyProgress,
    /// What a reboot in the middle of a copy, or a full pool, leaves of the target.
    #[arg(long, env = "RDS_CSI_COPY_INTERRUPTED", value_enum, default_value = "keep")]
    pub copy_interrupted: CopyInterrupted,
    #[arg(long, env = "RDS_CSI_COPY_FULL", value_enum, default_value = "midway")]
    pub copy_full: CopyFull,
    #[arg(long, env = "RDS_CSI_COPY_EXISTING", value_enum, default_value = "refuse")]
    pub copy_existing: CopyExisting,
    /// `/disk/copy` makes a `dst` file that does not exist. Default no: the manual says that it must be
    /// at least as large as what is copied.
    #[arg(long, env = "RDS_CSI_DISK_COPY_CREATES", default_value_t = false, action = clap::ArgAction::Set)]
    pub disk_copy_creates: bool,
    /// Why `/disk/copy` refuses a `dst` that is too small.
    #[arg(
        long,
        env = "RDS_CSI_COPY_TOO_SMALL_TEXT",
        default_value = "failure: destination too small"
    )]
    pub copy_too_small_text: String,
    /// What `parent=` of a subvolume is matched with. The manual's example of a transfer says: the name,
    /// not the path.
    #[arg(long, env = "RDS_CSI_SUBVOLUME_REFERENCE", value_enum, default_value = "name")]
    pub subvolume_reference: SubvolumeReference,
    #[arg(long, env = "RDS_CSI_SUBVOLUME_EXISTS_TEXT", default_value = "failure: File exists")]
    pub subvolume_exists_text: String,
    /// Why a subvolume that holds others is not removed.
    #[arg(
        long,
        env = "RDS_CSI_SUBVOLUME_BUSY_TEXT",
        default_value = "failure: Directory not empty"
    )]
    pub subvolume_busy_text: String,
    /// Why nothing is written into a read-only subvolume.
    #[arg(long, env = "RDS_CSI_READ_ONLY_TEXT", default_value = "failure: Read-only file system")]
    pub read_only_text: String,
    /// Columns of console output.
    #[arg(long, env = "RDS_CSI_CONSOLE_WIDTH", default_value_t = 250)]
    pub console_width: usize,
}

impl Switches {
    pub fn read_back(&self) -> ReadBack {
        ReadBack {
            actual_export: self.export_read_back == ExportReadBack::Actual,
            effective_nqn: self.nqn_read_back == NqnReadBack::Effective,
        }
    }
}
