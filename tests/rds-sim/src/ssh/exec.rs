//! One line of the console: understood, queued, carried out. Exit status 0 whatever happens.

use std::sync::Arc;

use crate::appliance::command::{Command, Reply};
use crate::clock;
use crate::console::parse::parse;
use crate::console::run::{Console, paths, run};
use crate::console::syntax::Statement;
use crate::desk::{Label, Outcome, Transport, submit};
use crate::journal::Record;
use crate::management::Mode;
use crate::ros::error::Refusal;
use crate::ros::policy;
use crate::sim::Sim;

/// What the line prints; `None`: the connection goes without an answer.
pub async fn exec(sim: &Arc<Sim>, line: &str, width: usize) -> Option<String> {
    if sim.management.mode() == Mode::WrongBody {
        return Some(String::new());
    }
    let script = match parse(line, sim.config.ros_version) {
        Ok(script) => script,
        Err(e) => {
            let time = clock::unix_ms();
            let record = Record {
                time,
                transport: "ssh",
                verb: "exec",
                path: "(syntax)",
                item: None,
                status: 400,
                us: 0,
            };
            sim.journal.write(&record);
            return Some(format!("{e}\r\n"));
        }
    };
    let label = Label {
        transport: Transport::Ssh,
        verb: "exec".into(),
        path: paths(&script).join(";"),
        item: None,
    };
    let script = Arc::new(script);
    let task_script = script.clone();
    let task_sim = sim.clone();
    let outcome = submit(sim, label, None, move |appliance| {
        Ok(carry_out(&task_sim, &task_script, width, &|command| appliance.execute(command)))
    });
    match outcome.await {
        Outcome::Done(Ok(text)) => Some(text),
        // A refusal ordered by a test reaches the script as an error of its first command.
        Outcome::Done(Err(refusal)) => {
            Some(carry_out(sim, &script, width, &|_| Err(refusal.clone())))
        }
        Outcome::Hung => std::future::pending().await,
        Outcome::Cut | Outcome::Lost => None,
    }
}

fn carry_out(
    sim: &Sim,
    script: &[Statement],
    width: usize,
    execute: &dyn Fn(&Command) -> Result<Reply, Refusal>,
) -> String {
    let switches = &sim.config.switches;
    let allowed = |command: &Command| {
        policy::require(&sim.config.policies, &[command.policy()])?;
        execute(command)
    };
    let console = Console {
        execute: &allowed,
        json: switches.ssh_json,
        width,
        context: switches.ssh_error_context,
    };
    run(&console, script)
}
