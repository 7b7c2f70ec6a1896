//! Two nodes on two kernels and one volume: who is shut out stays out, and who stays loses
//! nothing. In two guests (`rds-vm run --peer`), since names of device-mapper are one kernel's.
//!
//! [`pair`] is the stage, [`cut_off`] a node that is given up while it still has writes
//! waiting, [`migration`] a volume that two nodes have, [`flood`] a pod with a deep queue.

mod cut_off;
mod flood;
mod migration;
mod pair;

use clap::ValueEnum;
use comfy_table::{Table, presets};

pub(crate) use flood::child as flood;
use pair::Pair;

use crate::process::tail;
use crate::report::Report;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// A node is cut off, its volume forced to the other one.
    CutOff,
    /// Two nodes have a volume. Ends with the second guest's death.
    Migration,
}

/// What was seen, a line each.
struct Seen(Vec<[String; 3]>);

impl Seen {
    fn add(&mut self, what: &str, seen: String, late: Option<u64>) {
        let late = late.map_or_else(|| "-".to_owned(), |n| n.to_string());
        self.0.push([what.to_owned(), seen, late]);
    }

    fn print(&self, title: &str) {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_header(["what", "seen", "late writes"]);
        table.add_rows(&self.0);
        println!("\n{title}\n\n{table}\n");
    }
}

/// Runs the parts; true if all was as it should be.
pub(crate) async fn run(parts: &[Part]) -> bool {
    let title = format!("two nodes, Linux {}", std::env::var("RDS_VM_KERNEL").unwrap_or_default());
    let mut report = Report::new(&title);
    let pair = match Pair::begin().await {
        Ok(pair) => pair,
        Err(error) => {
            report.case("both nodes start", Err(error));
            return report.finish();
        }
    };
    report.say("appliance, controller and two nodes are up, each node on a kernel of its own");
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    let mut seen = Seen(Vec::new());
    let mut told = Ok(());
    if wanted(Part::CutOff) {
        told = cut_off::tell(&pair, &mut report, &mut seen).await;
    }
    if wanted(Part::Migration) && told.is_ok() {
        told = migration::tell(&pair, &mut report, &mut seen).await;
    }
    if !report.case("the story is told to its end", told) {
        for log in ["peer/agent", "agent", "controller"] {
            let lines = tail(log, 300);
            let told: Vec<_> = lines.lines().filter(|l| !l.contains(" TRACE ")).collect();
            println!("--- {log}\n{}", told[told.len().saturating_sub(60)..].join("\n"));
        }
    }
    report.case("everything ends when told to", pair.stack.stop());
    seen.print(&title);
    report.finish()
}
