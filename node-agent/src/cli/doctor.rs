//! `doctor`, as the command line has it; what it does is in [`crate::doctor`].

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use comfy_table::Color;

use crate::doctor::{Finding, Subject, Verdict, examine, report};

use super::client::ClientOptions;
use super::output::Format;
use super::style::Colours;
use super::{FAILED, json, printed};

#[derive(Debug, Args)]
pub(super) struct DoctorOptions {
    /// Where the daemon keeps its journal.
    #[arg(long, env = "RDS_CSI_STATE_DIR", default_value = "/var/lib/rds-csi")]
    state_dir: PathBuf,
    /// A data portal to try, besides those of attached volumes. May be repeated.
    #[arg(long, value_name = "ADDRESS:PORT")]
    portal: Vec<SocketAddr>,
    #[command(flatten)]
    client: ClientOptions,
}

/// Examines the host; `wide` also lists what is well.
pub(super) async fn doctor(options: DoctorOptions) -> ExitCode {
    let findings = examine(Subject {
        socket: options.client.socket,
        state_dir: options.state_dir,
        portals: options.portal,
    })
    .await;
    let colours = Colours::of_stdout();
    if let Err(error) = print(&findings, options.client.output, colours, &mut io::stdout().lock())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return printed(Err(error));
    }
    if report::is_well(&findings) { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn print(
    findings: &[Finding],
    format: Format,
    colours: Colours,
    out: &mut impl Write,
) -> io::Result<()> {
    if format == Format::Json {
        serde_json::to_writer_pretty(&mut *out, &report::json(findings, json::VERSION))?;
        return writeln!(out);
    }
    let colour = |verdict: Verdict, word: &str| {
        let colour = match verdict {
            Verdict::Ok => Color::Green,
            Verdict::Warning | Verdict::Unknown => Color::Yellow,
            Verdict::Problem => Color::Red,
        };
        colours.word(word, colour)
    };
    report::text(findings, format == Format::Wide, colour, out)
}
