//! What this process must be, since it stands in the write-back path: a page that is to be
//! written to a volume may wait for this agent, so the agent may not wait for that page.

use std::fs;

use tracing::warn;

/// What one of the allocator's arenas may grow to is kept by it, locked. By default there are
/// eight arenas a processor, and after the first large buffer is freed the next ones come from
/// them instead of from the kernel.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 * 1024;

/// Keeps memory from being resident that is not used: to be called before threads are made,
/// since an arena or a huge page that is there stays.
pub fn bound_memory() {
    // The first byte of a thread's stack would cost 2 MiB.
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        warn!(%error, "the agent may get huge pages, and needs more memory");
    }
    bound_allocator();
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn bound_allocator() {
    // SAFETY: mallopt(3) changes numbers of the allocator under its own lock; it takes no
    // pointers and gives none.
    let done = unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS) == 1
            && libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) == 1
    };
    if !done {
        warn!("the allocator keeps its defaults; the agent needs more memory");
    }
}

/// Other allocators have no such arenas.
#[cfg(not(target_env = "gnu"))]
fn bound_allocator() {}

/// Marks the process as one that write-back depends on, locks its memory, and lets the
/// out-of-memory killer take others first. Each is best effort: without it the agent
/// still works, less surely under memory pressure.
pub fn prepare_for_write_back() {
    // 1 below the value that exempts it altogether: a leak must still be ended.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-999") {
        warn!(%error, "the out-of-memory killer may choose the agent");
    }
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        warn!(%error, "the agent's own memory allocations may wait for a volume");
    }
    use rustix::mm::MlockAllFlags;
    // On fault: without it every thread's whole stack would be made resident.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = rustix::mm::mlockall(flags) {
        warn!(%error, "the agent's memory may be swapped out");
    }
}

/// Makes new files root's alone, as the systemd unit does: host NQNs are in them, which open volumes.
/// A container's are everybody's to read.
pub fn keep_files_private() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
}

/// Above programs that compute, below threads of the kernel that are in a hurry.
const NICE: libc::c_int = -10;

/// Puts this thread before other programs': while a session is lost every pod that writes
/// waits for the agent, and a host whose processors are busy may not make it wait longer.
/// Programs that the agent starts do not inherit it, nor do threads: each asks for itself.
#[allow(unsafe_code)]
pub fn hurry_this_thread() {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: both change the calling thread's scheduling only; `none` outlives the call.
    let done = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK, &raw const none)
            == 0
            && libc::setpriority(libc::PRIO_PROCESS, 0, NICE) == 0
    };
    if !done {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "the agent's threads run as any other program's");
    }
}
