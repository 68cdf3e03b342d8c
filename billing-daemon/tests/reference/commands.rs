//! The page of the commands, from the definition of the command line.

use billing_daemon::Cli;
use clap::{Arg, ArgAction, Command, CommandFactory};

use super::markdown;

pub(crate) fn page() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut page = format!("# Commands\n\n{}\n\n", markdown::sentence(&about(&cli)));
    page += "```text\nbilling-daemon [OPTIONS] COMMAND\n```\n\n";
    page += "Every command accepts these options:\n\n";
    let global: Vec<_> = cli.get_arguments().filter(|argument| argument.is_global_set()).collect();
    page += &arguments(&global);
    let commands: Vec<_> = visible(&cli).collect();
    let rows: Vec<_> = commands
        .iter()
        .map(|command| {
            let link = format!("[`{0}`](#{0})", command.get_name());
            vec![link, markdown::sentence(&about(command))]
        })
        .collect();
    page += &markdown::table(&["command", "does"], &rows);
    for command in commands {
        page += &section(command, command.get_name(), 2);
    }
    page += &format!(
        "## Environment and exit codes\n\nAs `billing-daemon --help` prints them:\n\n{}",
        afterword(&cli)
    );
    page
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| command.get_name() != "help" && !command.is_hide_set())
}

fn section(command: &Command, name: &str, level: usize) -> String {
    let mut section = format!("{} {name}\n\n{}\n\n", "#".repeat(level), markdown::sentence(&about(command)));
    let own: Vec<_> = command
        .get_arguments()
        .filter(|argument| {
            !argument.is_global_set() && !argument.is_hide_set() && argument.get_id() != "help"
        })
        .collect();
    let mut subcommands = visible(command).peekable();
    if subcommands.peek().is_none() {
        section += &format!("```text\n{}\n```\n\n", usage(name, &own));
        if !own.is_empty() {
            section += &arguments(&own);
        }
        if let Some(example) = command.get_after_help() {
            let example = example.to_string();
            let example = example.trim_start_matches("Example:").trim_start_matches("Examples:");
            let lines: Vec<_> = example.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            section += &format!("```sh\n{}\n```\n\n", lines.join("\n"));
        }
    }
    for subcommand in subcommands {
        section += &self::section(subcommand, &format!("{name} {}", subcommand.get_name()), level + 1);
    }
    section
}

fn usage(name: &str, own: &[&Arg]) -> String {
    let mut usage = format!("billing-daemon {name}");
    if own.iter().any(|argument| !argument.is_positional()) {
        usage += " [OPTIONS]";
    }
    for argument in own.iter().filter(|argument| argument.is_required_set()) {
        if let Some(long) = argument.get_long() {
            usage += &format!(" --{long} {}", value_name(argument));
        }
    }
    for argument in own.iter().filter(|argument| argument.is_positional()) {
        let many = if takes_many(argument) { "..." } else { "" };
        let value = value_name(argument);
        usage +=
            &if argument.is_required_set() { format!(" {value}{many}") } else { format!(" [{value}]{many}") };
    }
    usage
}

fn takes_many(argument: &Arg) -> bool {
    argument.get_num_args().is_some_and(|range| range.max_values() > 1)
        || matches!(argument.get_action(), ArgAction::Append)
}

fn value_name(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let names: Vec<_> = names.iter().map(|name| name.to_ascii_uppercase()).collect();
    names.join(" ")
}

fn arguments(arguments: &[&Arg]) -> String {
    let rows: Vec<_> = arguments
        .iter()
        .map(|argument| {
            let value = value_name(argument);
            let name = match argument.get_long() {
                _ if argument.is_positional() => value,
                Some(long) if takes_value(argument) => format!("--{long} {value}"),
                Some(long) => format!("--{long}"),
                None => argument.get_id().to_string(),
            };
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            // The default is at the end of the help: `[default: ./.env]`.
            let (help, default) = help.trim_end_matches(']').split_once(" [default: ").unwrap_or((&help, ""));
            let mut meaning = markdown::sentence(help);
            if !default.is_empty() {
                meaning += &format!(" Default: {}.", markdown::text(default));
            }
            let values = argument.get_possible_values();
            let values: Vec<_> = values.iter().filter(|value| !value.is_hide_set()).collect();
            if takes_value(argument) && !values.is_empty() {
                let values: Vec<_> = values.iter().map(|value| markdown::code(value.get_name())).collect();
                meaning += &format!(" Values: {}.", values.join(", "));
            }
            vec![markdown::code(&name), meaning]
        })
        .collect();
    markdown::table(&["argument", "meaning"], &rows)
}

fn takes_value(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Set | ArgAction::Append)
}

fn afterword(cli: &Command) -> String {
    let text = cli.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    let text = text.split("\n\nExample").next().unwrap_or_default();
    format!("```text\n{}\n```\n", text.trim_end())
}
