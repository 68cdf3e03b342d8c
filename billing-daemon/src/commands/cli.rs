//! The command line: the commands and the options that all of them share.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

#[cfg(feature = "console")]
use super::console::ConsoleCommand;
use super::{
    adopt::AdoptArgs,
    args::{AuthorArgs, JsonArgs},
    bill::BillArgs,
    charges::ChargesCommand,
    demo::DemoArgs,
    doctor::DoctorArgs,
    guard::GuardCommand,
    healthcheck::HealthcheckArgs,
    holds::HoldsCommand,
    jobs::JobsCommand,
    migrate::MigrateCommand,
    prepaid::{EventsCommand, PolicyCommand, PrepaidCommand, StandingCommand, WalletsArgs, WebhookCommand},
    run::RunArgs,
    runs::RunsCommand,
    service::ServiceCommand,
};
use crate::config::log::LogFormat;

/// The widest line of help, so that it fits any terminal.
const HELP_WIDTH: usize = 80;

/// Charge every hour of every instance exactly once, in the database of a hosting panel.
#[derive(Debug, Parser)]
#[command(
    name = "billing-daemon",
    version,
    arg_required_else_help = true,
    max_term_width = HELP_WIDTH,
    after_help = "Example:\n  billing-daemon demo",
    after_long_help = DETAILS
)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const DETAILS: &str = "\
Environment:
  DATABASE_URL       postgres://user:password@host:5432/panel or
                     sqlite://billing.db
  DATABASE_URL_FILE  file that contains this URL
  BILLING_INTERVAL_MINUTES
                     replaces the schedule of the job of kind `billing`
  BILLING_LIVENESS_FILE
                     file that `run` renews while it makes progress, for
                     `healthcheck`; on a file system in memory
  LOG_LEVEL          error, warn, info, debug or trace, or target=level pairs
  OTEL_EXPORTER_OTLP_ENDPOINT
                     where `run` sends traces, such as http://127.0.0.1:4318

Exit codes:
  0   success
  1   finding, such as a failed check
  64  wrong usage
  69  database unavailable
  70  internal error
  75  temporary failure, try again
  77  missing permission
  78  wrong configuration or schema

Example:
  billing-daemon demo";

const HEALTHCHECK: &str = "\
Check that the daemon in this container makes progress; exit 1 if it hangs

For the health check or liveness probe of a container. It reads the file that
BILLING_LIVENESS_FILE names, which the running daemon renews each second. A
daemon that waits for its database is healthy: a restart would not help. Use
`status` to check whether billing works.";

/// The message of a clap error, if it would otherwise repeat an argument that may contain a password.
pub(crate) fn sanitized_error(
    error: &clap::Error,
    arguments: impl Iterator<Item = String>,
) -> Option<String> {
    let text = error.render().to_string();
    let may_be_secret = |argument: &String| argument.contains("://") || argument.contains("password");
    let sanitized = arguments.filter(may_be_secret).fold(text.clone(), |text, argument| {
        let value = argument.split_once('=').filter(|(name, _)| name.starts_with('-'));
        text.replace(value.map_or(argument.as_str(), |(_, value)| value), "***")
    });
    (sanitized != text).then_some(sanitized)
}

/// Returns the position of the first argument with a control character, from 1. No name or reason has one, and it could forge a line
/// of a log. The argument itself may be a secret.
pub(crate) fn control_character(arguments: impl IntoIterator<Item = OsString>) -> Option<usize> {
    let found =
        arguments.into_iter().position(|argument| argument.to_string_lossy().contains(char::is_control));
    found.map(|position| position + 1)
}

/// The options of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// File with jobs and settings [default: ./jobs.toml, then /etc/billing-daemon/jobs.toml, then built-in]
    #[arg(long, global = true, help_heading = "Global options", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// File with environment variables; variables that are already set take precedence [default: ./.env]
    #[arg(long, global = true, help_heading = "Global options", value_name = "FILE")]
    pub(crate) env_file: Option<PathBuf>,
    /// Accept files that contain a password and that other users can read
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) allow_readable_secrets: bool,
    /// Format of log lines [default: text, or journal fields under systemd]
    #[arg(long, global = true, help_heading = "Global options", value_enum)]
    pub(crate) log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the jobs until SIGTERM or SIGINT, then complete the runs in progress
    #[command(after_help = "Example:\n  DATABASE_URL=postgres://billing@localhost/panel billing-daemon run")]
    Run(RunArgs),
    /// Install, start and stop the daemon as a system service
    #[command(after_help = "Example:\n  billing-daemon service install --dry-run")]
    Service {
        #[command(subcommand)]
        action: ServiceCommand,
    },
    /// Show the state of billing; exit 1 unless it is healthy
    #[command(after_help = "Example:\n  billing-daemon status --json | jq -r '.problems[].message'")]
    Status(JsonArgs),
    /// Check that the daemon in this container makes progress; exit 1 if it hangs
    #[command(
        long_about = HEALTHCHECK,
        after_help = "Example:\n  BILLING_LIVENESS_FILE=/dev/shm/billing-daemon billing-daemon healthcheck"
    )]
    Healthcheck(HealthcheckArgs),
    /// Manage who can sign in to the console
    #[cfg(feature = "console")]
    #[command(after_help = "Example:\n  billing-daemon console token --name ada --rights view,operate")]
    Console {
        #[command(subcommand)]
        action: ConsoleCommand,
    },
    /// Check everything that could prevent billing; exit 1 if a check fails
    #[command(after_help = "Example:\n  billing-daemon doctor --bundle support.tar.gz")]
    Doctor(DoctorArgs),
    /// Explain charges
    #[command(after_help = "Example:\n  billing-daemon charges explain web-1 --at 2026-05-01T12:30:00Z")]
    Charges {
        #[command(subcommand)]
        action: ChargesCommand,
    },
    /// Inspect and control jobs; works without a running daemon
    #[command(after_help = "Example:\n  billing-daemon jobs list")]
    Jobs {
        #[command(subcommand)]
        action: JobsCommand,
    },
    /// Inspect past runs
    #[command(after_help = "Example:\n  billing-daemon runs list --status dead --since 7d")]
    Runs {
        #[command(subcommand)]
        action: RunsCommand,
    },
    /// Bill a generated fleet twice and audit it; needs no database or configuration
    #[command(after_help = "Example:\n  billing-daemon demo --instances 10000")]
    Demo(DemoArgs),
    /// List every mistake in jobs.toml and the environment
    #[command(after_help = "Example:\n  billing-daemon check --config /etc/billing-daemon/jobs.toml")]
    Check {
        /// Print the built-in jobs.toml and check nothing
        #[arg(long)]
        print_defaults: bool,
    },
    /// Print the JSON Schema of jobs.toml, for editors
    #[command(after_help = "Example:\n  billing-daemon schema > jobs.schema.json")]
    Schema,
    /// Print the completion script for a shell
    #[command(
        after_help = "Example:\n  billing-daemon completions bash > /etc/bash_completion.d/billing-daemon"
    )]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page, or write the pages of all commands
    #[command(after_help = "Example:\n  billing-daemon man --dir /usr/local/share/man/man1")]
    Man {
        /// Write one page per command to this existing folder
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
    /// Print the version, the build target and the required schema
    #[command(after_help = "Example:\n  billing-daemon version --json | jq -r .schema")]
    Version(JsonArgs),
    /// Create or drop the tables that billing needs, or list the migrations
    #[command(after_help = "Example:\n  DATABASE_URL=sqlite://billing.db billing-daemon migrate up")]
    Migrate {
        #[command(subcommand)]
        action: MigrateCommand,
    },
    /// Run billing once, now, for all hours that are due
    #[command(after_help = "Example:\n  billing-daemon bill --dry-run")]
    Bill(BillArgs),
    /// List held instances; accept or write off holds
    #[command(after_help = "Example:\n  billing-daemon holds list")]
    Holds {
        #[command(subcommand)]
        action: HoldsCommand,
    },
    /// List how many hours each wallet covers
    #[command(after_help = "Example:\n  billing-daemon wallets --below 72h")]
    Wallets(WalletsArgs),
    /// Show the standing of an organization under the prepaid policy
    #[command(after_help = "Example:\n  billing-daemon standing show acme")]
    Standing {
        #[command(subcommand)]
        action: StandingCommand,
    },
    /// Show or set what the prepaid policy applies to one organization
    #[command(after_help = "Example:\n  billing-daemon policy show acme")]
    Policy {
        #[command(subcommand)]
        action: PolicyCommand,
    },
    /// Inspect the events of the prepaid policy, send them again or give them up
    #[command(after_help = "Example:\n  billing-daemon events list --status dead")]
    Events {
        #[command(subcommand)]
        action: EventsCommand,
    },
    /// Test the endpoints of the prepaid policy
    #[command(after_help = "Example:\n  billing-daemon webhook test panel")]
    Webhook {
        #[command(subcommand)]
        action: WebhookCommand,
    },
    /// Simulate the prepaid policy, or send its wanted states again
    #[command(after_help = "Example:\n  billing-daemon prepaid simulate --hours 96")]
    Prepaid {
        #[command(subcommand)]
        action: PrepaidCommand,
    },
    /// Take billing over from the panel's built-in biller
    #[command(after_help = "Example:\n  billing-daemon adopt --dry-run")]
    Adopt(AdoptArgs),
    /// Hand billing back to the panel; every daemon must be stopped
    #[command(after_help = "Example:\n  billing-daemon release")]
    Release(JsonArgs),
    /// Manage the panel guard, the triggers that hold back the panel's biller (PostgreSQL only)
    #[command(after_help = "Example:\n  billing-daemon guard install")]
    Guard {
        #[command(subcommand)]
        action: GuardCommand,
    },
    /// Resume billing on a database that was restored from a backup, or lost commits in a failover
    #[command(after_help = "Example:\n  billing-daemon accept-restore")]
    AcceptRestore(AuthorArgs),
    /// Check every invariant of the charges and wallets; exit 1 if one is violated
    #[command(after_help = "Example:\n  billing-daemon audit --json | jq .violations")]
    Audit(JsonArgs),
}

impl Cli {
    /// Whether a service manager started this process and waits for its reports.
    #[cfg(windows)]
    pub(crate) fn is_service(&self) -> bool {
        matches!(self.command, Command::Run(RunArgs { as_service: true, .. }))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Splits a line into words as a shell does, as far as the examples need it.
    fn words(line: &str) -> Vec<String> {
        let mut quoted = false;
        let words = line.split(|c: char| {
            quoted ^= c == '\'';
            c == ' ' && !quoted
        });
        words.map(|word| word.replace('\'', "")).collect()
    }

    fn commands(command: &clap::Command, path: &str, found: &mut Vec<(String, String)>) {
        let path = format!("{path} {}", command.get_name()).trim_start().to_owned();
        found.push((path.clone(), command.clone().render_long_help().to_string()));
        for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
            commands(command, &path, found);
        }
    }

    #[test]
    fn control_character_in_argument_is_found() {
        for (arguments, position) in [
            (["holds", "--reason=a b \u{fc}"], None),
            (["jobs\0", "list"], Some(1)),
            (["--job", "a\nb"], Some(2)),
            (["--job", "\u{85}"], Some(2)),
        ] {
            assert_eq!(control_character(arguments.map(OsString::from)), position, "{arguments:?}");
        }
    }

    /// clap prints a default on a separate line, so the help of each option contains it instead.
    #[test]
    fn help_contains_each_default() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments().filter(|argument| argument.get_action().takes_values()) {
                for default in argument.get_default_values() {
                    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                    let end = format!(" [default: {}]", default.display());
                    assert!(help.ends_with(&end), "{} {}: {help}", command.get_name(), argument.get_id());
                    assert!(argument.is_hide_default_value_set(), "{help}");
                }
            }
            command.get_subcommands().for_each(check);
        }
        let mut cli = Cli::command();
        cli.build();
        check(&cli);
    }

    #[test]
    fn each_help_has_one_valid_example() {
        let mut found = Vec::new();
        let mut cli = Cli::command();
        cli.build();
        commands(&cli, "", &mut found);
        assert!(found.iter().any(|(path, _)| path == "billing-daemon jobs trigger"), "{found:?}");
        for (path, help) in found {
            let wide = help.lines().find(|line| line.chars().count() > HELP_WIDTH);
            assert_eq!(wide, None, "{path} has a line of more than {HELP_WIDTH} columns");
            let (_, examples) =
                help.split_once("\nExample:\n").unwrap_or_else(|| panic!("{path} has no example: {help}"));
            let lines: Vec<_> = examples.lines().filter(|line| !line.is_empty()).collect();
            let [example] = lines.as_slice() else { panic!("{path} has more than one example: {examples}") };
            let all = words(example.trim());
            let before =
                |word: &&String| word.as_str() == "sudo" || word.contains('=') && !word.starts_with('-');
            let line = all.iter().skip_while(before);
            let line: Vec<_> =
                line.take_while(|word| !["|", ">"].contains(&word.as_str())).cloned().collect();
            let parsed = Cli::try_parse_from(&line);
            assert!(parsed.is_ok(), "{path}: {example}: {parsed:?}");
            assert!(line.join(" ").starts_with(&path), "{path} shows another command: {example}");
        }
    }
}
