//! Headings under which `--help` lists the commands.

use clap::{Command, Subcommand};

/// Commands that are not hidden, by heading.
const HEADINGS: &[(&str, &[&str])] = &[
    (
        "Inspect",
        &[
            "status",
            "top",
            "collections",
            "get",
            "ls",
            "tail",
            "history",
            "diff",
            "export",
            "segments",
            "dump-record",
            "generations",
            "verify",
            "audit",
        ],
    ),
    ("Write", &["put", "delete", "revert", "import", "import-gravwell", "barrier", "outbox", "quarantine", "compact"]),
    ("Members", &["members", "presence", "enroll", "join", "revoke", "authority"]),
    ("Backup and recovery", &["backup", "restore", "repair", "recover"]),
    ("Blobs", &["blobs"]),
    ("Processes", &["replica"]),
    (TOOLS, &["doctor", "debug-bundle", "lb", "cert", "demo", "bench", "completions", "man"]),
];
/// Heading of the command `help`, which clap adds.
const TOOLS: &str = "Tools";
/// Lines of `--help` are not longer.
pub(crate) const WIDTH_MAX: usize = 100;

/// Returns the template of `--help`. Clap knows headings for options, but one only for all commands; it formats the list
/// below each heading here.
pub(crate) fn help_template() -> String {
    let all = super::Command::augment_subcommands(Command::new("all"));
    let header = all.get_styles().get_header();
    let mut template = "{before-help}{about-with-newline}\n{usage-heading} {usage}\n\n".to_owned();
    for (heading, names) in HEADINGS {
        let listed = names
            .iter()
            .enumerate()
            .filter_map(|(place, name)| all.find_subcommand(name).map(|command| command.clone().display_order(place)));
        let mut group = Command::new("group")
            .max_term_width(WIDTH_MAX)
            .help_template("{subcommands}")
            .disable_help_subcommand(*heading != TOOLS)
            .subcommands(listed);
        let list = group.render_help().ansi().to_string();
        template += &format!("{header}{heading}:{header:#}\n{}\n\n", list.trim_end());
    }
    template + &format!("{header}Options:{header:#}\n{{options}}{{after-help}}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::CommandFactory;

    use super::*;
    use crate::args::Args;

    #[test]
    fn help_lists_every_visible_command_under_exactly_one_heading() {
        let mut program = Args::command();
        program.build();
        let visible = program.get_subcommands().filter(|command| !command.is_hide_set());
        let visible: Vec<String> = visible.map(|command| command.get_name().to_owned()).collect();
        for text in [program.clone().render_help().to_string(), program.render_long_help().to_string()] {
            let (lists, options) = text.split_once("\nOptions:\n").expect("options come last");
            assert!(options.contains("--data-dir"), "{text}");
            let mut under: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            let mut heading = None;
            for line in lists.lines() {
                if HEADINGS.iter().any(|(known, _)| line.strip_suffix(':') == Some(known)) {
                    heading = Some(line);
                } else if let (Some(heading), Some(row)) = (heading, line.strip_prefix("  "))
                    && !row.starts_with(' ')
                {
                    let name = row.split_whitespace().next().unwrap_or_default();
                    under.entry(name).or_default().push(heading);
                }
            }
            assert!(under.values().all(|headings| headings.len() == 1), "{under:?}");
            let mut listed: Vec<&str> = under.into_keys().collect();
            let mut visible: Vec<&str> = visible.iter().map(String::as_str).collect();
            listed.sort_unstable();
            visible.sort_unstable();
            assert_eq!(listed, visible, "HEADINGS has every command that is not hidden");
        }
    }
}
