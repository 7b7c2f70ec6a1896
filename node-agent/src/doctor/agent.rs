//! The daemon: whether it answers, and whether it is what stands in the write-back path has
//! to be.

use crate::error::Result;

use super::Finding;
use super::context::{Context, Daemon, Host};

/// What the unit and the agent itself set; anything near it will do.
const OOM_SCORE_AT_MOST: i32 = -900;

pub(super) fn check(context: &Context) -> Result<Vec<Finding>> {
    const CHECK: &str = "agent.answers";
    let socket = context.subject.socket.display();
    let answers = match &context.daemon {
        Daemon::Answers(reply) => Finding::ok(
            CHECK,
            format!("version {} on {socket}, {} volumes", reply.agent_version, reply.volumes.len()),
        ),
        Daemon::Absent(reason) => Finding::problem(
            CHECK,
            format!(
                "no agent answers on {socket}: {reason}. Volumes work on as long as their \
                 sessions do, but nobody brings a lost one back"
            ),
            "systemctl restart rds-node-agent; journalctl -u rds-node-agent tells why it ended",
        ),
        Daemon::Mute(reason) => Finding::problem(
            CHECK,
            format!("the agent on {socket} does not tell its state: {reason}"),
            "run as root; else systemctl restart rds-node-agent, which interrupts no volume",
        ),
    };
    let mut findings = vec![answers];
    if let Daemon::Answers(reply) = &context.daemon
        && reply.agent_version != env!("CARGO_PKG_VERSION")
    {
        findings.push(Finding::warning(
            "agent.version",
            format!(
                "version {} runs, {} is installed",
                reply.agent_version,
                env!("CARGO_PKG_VERSION")
            ),
            "systemctl restart rds-node-agent, which interrupts no volume",
        ));
    }
    if let Some(pid) = context.daemon_pid {
        findings.extend(process(&context.host, pid)?);
    }
    Ok(findings)
}

fn process(host: &Host, pid: i32) -> Result<Vec<Finding>> {
    let score = host.text(&format!("/proc/{pid}/oom_score_adj"))?;
    let status = host.text(&format!("/proc/{pid}/status"))?;
    let (Some(score), Some(status)) = (score, status) else {
        return Ok(vec![Finding::unknown("agent.memory", format!("process {pid} is gone"))]);
    };
    Ok(vec![oom(pid, &score), locked(pid, &status)])
}

fn oom(pid: i32, score: &str) -> Finding {
    const CHECK: &str = "agent.oom-score";
    match score.trim().parse::<i32>() {
        Ok(score) if score <= OOM_SCORE_AT_MOST => Finding::ok(CHECK, score),
        Ok(score) => Finding::warning(
            CHECK,
            format!(
                "{score}: the out-of-memory killer may choose the agent, and memory may then be \
                 waiting for a volume that only the agent can bring back"
            ),
            format!("choom -p {pid} -n -999; in the unit: OOMScoreAdjust=-999"),
        ),
        Err(_) => Finding::unknown(CHECK, format!("oom_score_adj is {score:?}")),
    }
}

fn locked(pid: i32, status: &str) -> Finding {
    const CHECK: &str = "agent.memory";
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    match (field("VmLck"), field("VmRSS")) {
        (Some(0), _) => Finding::warning(
            CHECK,
            format!(
                "process {pid} has no locked memory: it may have to be read from a disk that waits"
            ),
            "in the unit: LimitMEMLOCK=infinity, then systemctl restart rds-node-agent",
        ),
        (Some(_), Some(resident)) => Finding::ok(CHECK, format!("locked; {resident} kB resident")),
        _ => Finding::unknown(CHECK, format!("/proc/{pid}/status lacks VmLck or VmRSS")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn memory_is_judged_from_proc() {
        let status = "Name:\trds-node-agent\nVmLck:\t   20480 kB\nVmRSS:\t   14000 kB\n";
        assert_eq!(locked(1, status).verdict, Verdict::Ok);
        assert_eq!(locked(1, &status.replace("20480", "0")).verdict, Verdict::Warning);
        assert_eq!(locked(1, "Name:\tx\n").verdict, Verdict::Unknown);
        assert_eq!(oom(1, "-999\n").verdict, Verdict::Ok);
        assert_eq!(oom(1, "0\n").verdict, Verdict::Warning);
        assert_eq!(oom(1, "").verdict, Verdict::Unknown);
    }
}
