//! Shell completions and manual pages, made from the same definition that parses the
//! command line: they cannot tell of options that are not there.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

const MANUAL: &str = "rds-csi";

/// For all commands; clap itself ends with 2.
const EXIT_STATUS: [(&str, &str); 4] = [
    ("0", "Done. For doctor: nothing is wrong, warnings apart."),
    ("1", "Failed; the reason is on standard error. For doctor: there is a problem."),
    ("2", "The command line is wrong."),
    ("3", "The daemon cannot be reached. Its volumes stay as they are while it is away."),
];

const FILES: [(&str, &str); 7] = [
    ("/run/rds-csi/agent.sock", "The daemon's socket, for root and for the users of --allow-uid."),
    ("/run/rds-csi/sessions/", "A second copy of each session's record, for this boot."),
    ("/var/lib/rds-csi/journal/", "What was intended and done, across crashes of the daemon."),
    (
        "/var/lib/rds-csi/journal.damaged-*",
        "Journals that could not be used and were set aside. Nothing reads them any more.",
    ),
    ("/etc/rds-csi/agent.env", "Settings of the daemon as RDS_CSI_<FLAG>=value, one a line."),
    (
        "/usr/lib/udev/rules.d/10-rds-csi.rules",
        "Keeps LVM, udisks, btrfs and blkid off the volumes' devices.",
    ),
    ("/etc/multipath/conf.d/rds-csi.conf", "Keeps multipathd off them."),
];

/// Read by the program itself, not by one of its options.
const ENVIRONMENT: [(&str, &str); 2] = [
    (
        "NO_COLOR",
        "If set and not empty, nothing is coloured. Without it, states are coloured on a terminal.",
    ),
    (
        "RDS_CSI_LOG",
        "What the daemon logs, as of tracing's EnvFilter: info, or info,rds_node_agent=debug.",
    ),
];

/// Writes completions for a shell.
pub(super) fn completions(shell: Shell, mut command: Command, out: &mut impl Write) {
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, out);
}

/// Writes a page for the command and one for each of its subcommands, and tells their names.
///
/// # Errors
/// If the directory or a file in it cannot be written.
pub(super) fn pages(command: Command, dir: &Path) -> io::Result<Vec<String>> {
    fs::create_dir_all(dir)?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut written = Vec::new();
    let shown = command.get_subcommands().filter(|c| !c.is_hide_set());
    for command in std::iter::once(&command).chain(shown) {
        let name = format!("{}.1", page_name(command));
        let mut bytes = Vec::new();
        page(command, &mut bytes)?;
        fs::write(dir.join(&name), bytes)?;
        written.push(name);
    }
    Ok(written)
}

/// Writes the page of one command.
///
/// # Errors
/// If `out` fails.
pub(super) fn page(command: &Command, out: &mut impl Write) -> io::Result<()> {
    let man = Man::new(command.clone())
        .manual(MANUAL)
        // No date: the same source gives the same page. It may not be empty, though, or the
        // next argument would take its place.
        .date(" ")
        .source(format!("rds-node-agent {}", env!("CARGO_PKG_VERSION")));
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    if command.get_arguments().any(|a| !a.is_hide_set()) {
        man.render_options_section(out)?;
    }
    let parent = command.get_subcommands().any(|c| !c.is_hide_set());
    if parent {
        man.render_subcommands_section(out)?;
    }
    section("EXIT STATUS", &EXIT_STATUS, out)?;
    section("ENVIRONMENT", &environment(command), out)?;
    section("FILES", &FILES, out)?;
    let mut also = Roff::new();
    also.control("SH", ["SEE ALSO"]);
    also.text([roman(see_also(command, parent))]);
    also.to_writer(out)
}

fn page_name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

/// What the command's own options read, then what the program reads.
fn environment(command: &Command) -> Vec<(String, String)> {
    let own = command.get_arguments().filter_map(|argument| {
        let variable = argument.get_env()?.to_str()?.to_owned();
        let long = argument.get_long()?;
        Some((variable, format!("The value of --{long} where that is not given.")))
    });
    let general = ENVIRONMENT.map(|(name, text)| (name.to_owned(), text.to_owned()));
    own.chain(general).collect()
}

fn see_also(command: &Command, parent: bool) -> String {
    if !parent {
        return "rds-node-agent(1)".into();
    }
    let pages = command.get_subcommands().filter(|c| !c.is_hide_set());
    pages.map(|c| format!("{}(1)", page_name(c))).collect::<Vec<_>>().join(", ")
}

fn section(
    title: &str,
    entries: &[(impl AsRef<str>, impl AsRef<str>)],
    out: &mut impl Write,
) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    for (term, text) in entries {
        roff.control("TP", []);
        roff.text([bold(term.as_ref())]);
        roff.text([roman(text.as_ref())]);
    }
    roff.to_writer(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    #[test]
    fn every_command_has_a_page_with_all_sections() {
        let dir = tempfile::tempdir().unwrap();
        let written = pages(Cli::command(), dir.path()).unwrap();
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let name = format!("rds-node-agent-{}.1", command.get_name());
            assert!(written.contains(&name), "{name} is not among {written:?}");
        }
        assert!(written.contains(&"rds-node-agent.1".to_owned()));
        for name in written {
            let text = fs::read_to_string(dir.path().join(&name)).unwrap();
            for section in ["NAME", "SYNOPSIS", "EXIT STATUS", "ENVIRONMENT", "FILES"] {
                let heading = [format!(".SH {section}"), format!(".SH \"{section}\"")];
                assert!(heading.iter().any(|h| text.contains(h)), "{name} lacks {section}");
            }
        }
    }

    #[test]
    fn a_page_names_the_variables_of_its_options() {
        let dir = tempfile::tempdir().unwrap();
        pages(Cli::command(), dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join("rds-node-agent-serve.1")).unwrap();
        assert!(text.contains("RDS_CSI_STATE_DIR") || text.contains("RDS\\_CSI\\_STATE\\_DIR"));
    }

    #[test]
    fn completions_know_the_commands_of_each_shell() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut bytes = Vec::new();
            completions(shell, Cli::command(), &mut bytes);
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains("reconnect") && text.contains("history"), "{shell}");
        }
    }
}
