//! What a node has to keep for the agent: in the kernel, and in its process.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::fleet::Process;
use crate::stack::Stack;

/// What the second round may add to the agent's memory: the allocator's fragments and the
/// journal's cache, which is bounded. A leak of 64 cycles of at least 4 calls each would have
/// to be below 16 KiB a call not to be seen.
const MORE_MEMORY_KIB: u64 = 4096;
/// The keeper's threads for calls that were given up, and connections that are being closed,
/// go away by themselves.
const RESTS: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footprint {
    mounts: usize,
    shields: usize,
    controllers: usize,
    descriptors: usize,
    threads: u64,
    children: usize,
    memory_kib: u64,
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mounts, shields, controllers, descriptors, threads, children, memory_kib } =
            self;
        write!(
            f,
            "{mounts} mounts, {shields} dm devices, {controllers} controllers; the agent has \
             {descriptors} descriptors, {threads} threads, {children} children, {memory_kib} KiB"
        )
    }
}

impl Footprint {
    pub(super) fn of(stack: &Stack) -> Result<Self> {
        let pid = stack.agent_pid()?;
        let agent = Process(pid);
        let dm = fs::read_dir("/sys/block")?.flatten();
        let dm = dm.filter(|e| e.file_name().to_string_lossy().starts_with("dm-"));
        Ok(Self {
            mounts: fs::read_to_string("/proc/self/mountinfo")?.lines().count(),
            shields: dm.count(),
            controllers: fs::read_dir("/sys/class/nvme")?.count(),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: agent.status("Threads")?,
            children: children(pid)?,
            memory_kib: agent.status("VmRSS")?,
        })
    }

    fn is_back_at(&self, before: &Self) -> bool {
        Self { memory_kib: 0, ..*self } == Self { memory_kib: 0, ..*before }
    }

    /// Counts as before everything; memory as after the first round.
    pub(super) fn expect_no_more_than(
        &self,
        before: &Self,
        warm: &Self,
        stack: &Stack,
    ) -> Result<()> {
        ensure!(self.is_back_at(before), "something is left: {self}; before it was {before}");
        let most = warm.memory_kib + MORE_MEMORY_KIB;
        if self.memory_kib > most {
            println!("{}", Process(stack.agent_pid()?).largest_mappings()?);
        }
        ensure!(self.memory_kib <= most, "the agent grows: {self}; after one round it was {warm}");
        Ok(())
    }
}

/// Programs that it has started.
fn children(pid: u32) -> Result<usize> {
    let mut count = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        count += list.split_whitespace().count();
    }
    Ok(count)
}

/// As soon as it is what it was before, or when it does not become so.
pub(super) async fn at_rest(stack: &Stack, before: &Footprint) -> Result<Footprint> {
    let began = Instant::now();
    loop {
        let now = Footprint::of(stack).context("look at the agent")?;
        if now.is_back_at(before) || began.elapsed() > RESTS {
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
