//! The command line: what can be asked, and with which words.

use std::{path::PathBuf, time::Duration};

use billing_jobs::hold::Reason;
use billing_scheduler::{RunStatus, duration};
use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use uuid::Uuid;

use crate::{
    config::log::LogFormat,
    exit::{Exit, Failure},
    service_install::System,
};

/// Charges every hour of every virtual machine exactly once, beside a hosting panel.
#[derive(Debug, Parser)]
#[command(
    name = "billing-daemon",
    version,
    arg_required_else_help = true,
    after_help = "Example:\n  billing-daemon demo",
    after_long_help = AFTERWORD
)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What holds for every command.
const AFTERWORD: &str = "\
Environment:
  DATABASE_URL              postgres://user:password@host:5432/panel or sqlite://billing.db
  DATABASE_URL_FILE         a file that holds it instead
  BILLING_INTERVAL_MINUTES  replaces the schedule of the job of kind `billing`
  LOG_LEVEL                 error, warn, info, debug or trace, or target=level pairs
  OTEL_EXPORTER_OTLP_ENDPOINT
                            where `run` sends traces, such as http://127.0.0.1:4318 (see docs/operations.md)

Exit codes:
  0 done, 1 a finding, 64 wrong usage, 69 database unavailable, 70 internal, 75 try again, 77 a right is missing,
  78 configuration or schema

Example:
  billing-daemon demo";

/// What is wrong with the command line, where that would repeat an argument that may hold a password.
pub(crate) fn sanitized_error(
    error: &clap::Error,
    arguments: impl Iterator<Item = String>,
) -> Option<String> {
    let text = error.render().to_string();
    let secret = |argument: &String| argument.contains("://") || argument.contains("password");
    let told = arguments.filter(secret).fold(text.clone(), |text, argument| {
        let value = argument.split_once('=').filter(|(name, _)| name.starts_with('-'));
        text.replace(value.map_or(argument.as_str(), |(_, value)| value), "***")
    });
    (told != text).then_some(told)
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// The jobs and their settings [default: ./jobs.toml, else /etc/billing-daemon/jobs.toml, else built-in defaults]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Read settings that the environment lacks from here [default: ./.env]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) env_file: Option<PathBuf>,
    /// Go on although others may read a file with a password in it
    #[arg(long, global = true)]
    pub(crate) allow_readable_secrets: bool,
    /// How log lines look [default: fields for the journal where it is systemd's, else text]
    #[arg(long, global = true, value_enum)]
    pub(crate) log_format: Option<LogFormat>,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the jobs until SIGTERM or SIGINT, then complete the runs in progress
    #[command(
        after_help = "Example:\n  DATABASE_URL=postgres://billing@localhost/panel billing-daemon run --config jobs.toml"
    )]
    Run {
        /// Log into this file instead of the standard streams; at 10 MiB another one is begun, and nine are kept beside it
        #[arg(long, value_name = "FILE")]
        log_file: Option<PathBuf>,
        /// Answer to the service manager of Windows, which started this process
        #[cfg(windows)]
        #[arg(long, hide = true)]
        as_service: bool,
    },
    /// Install the daemon as a service of this system, start it and stop it
    #[command(after_help = "Example:\n  billing-daemon service install --dry-run")]
    Service {
        #[command(subcommand)]
        action: Service,
    },
    /// Show how billing stands; exits 0 only if all is well
    #[command(after_help = "Example:\n  billing-daemon status --json | jq -r '.problems[].message'")]
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check everything that could keep billing from working; exits 1 if something does
    #[command(after_help = "Example:\n  billing-daemon doctor --bundle support.tar.gz")]
    Doctor(Doctor),
    /// Take charges apart
    #[command(after_help = "Example:\n  billing-daemon charges explain web-1 --at 2026-05-01T12:30:00Z")]
    Charges {
        #[command(subcommand)]
        action: Charges,
    },
    /// See how jobs stand, and control them; no daemon need run for it
    #[command(after_help = "Example:\n  billing-daemon jobs list")]
    Jobs {
        #[command(subcommand)]
        action: Jobs,
    },
    /// See what ran, and what did not and why
    #[command(after_help = "Example:\n  billing-daemon runs list --status dead --since 7d")]
    Runs {
        #[command(subcommand)]
        action: Runs,
    },
    /// Bill a made-up fleet, twice, and audit it: needs nothing but this program
    #[command(after_help = "Example:\n  billing-daemon demo --instances 10000")]
    Demo(Demo),
    /// Find everything that is wrong with jobs.toml and the environment
    #[command(after_help = "Example:\n  billing-daemon check --config /etc/billing-daemon/jobs.toml")]
    Check {
        /// Print the built-in jobs.toml instead of checking one
        #[arg(long)]
        print_defaults: bool,
    },
    /// Print the JSON Schema of jobs.toml, by which editors complete and check it
    #[command(after_help = "Example:\n  billing-daemon schema > jobs.schema.json")]
    Schema,
    /// Print what completes this command line in a shell
    #[command(
        after_help = "Example:\n  billing-daemon completions bash > /etc/bash_completion.d/billing-daemon"
    )]
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page, or write those of all commands
    #[command(after_help = "Example:\n  billing-daemon man --dir /usr/local/share/man/man1")]
    Man {
        /// Write a page for each command into this folder, which must exist
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
    /// Show what this program is: its version, what it was built for, and the schema that it needs
    #[command(after_help = "Example:\n  billing-daemon version --json | jq -r .schema")]
    Version {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Create or undo the tables that billing needs
    #[command(after_help = "Example:\n  DATABASE_URL=sqlite://billing.db billing-daemon migrate up")]
    Migrate {
        #[command(subcommand)]
        action: Migrate,
    },
    /// Bill everything that is due, once, now
    #[command(after_help = "Example:\n  billing-daemon bill --dry-run")]
    Bill(Bill),
    /// List held instances, accept a hold, or write one off
    #[command(after_help = "Example:\n  billing-daemon holds list")]
    Holds {
        #[command(subcommand)]
        action: Holds,
    },
    /// Take the fleet over from the panel's own biller
    #[command(after_help = "Example:\n  billing-daemon adopt --dry-run")]
    Adopt(Adopt),
    /// Hand billing back to the panel, once no daemon runs
    #[command(after_help = "Example:\n  billing-daemon release")]
    Release {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Hold the panel's own biller back while ours works (PostgreSQL)
    #[command(
        after_help = "Example:\n  DATABASE_URL=postgres://panel_owner@localhost/panel billing-daemon guard install"
    )]
    Guard {
        #[command(subcommand)]
        action: Guard,
    },
    /// Go on with a database that was restored from a backup
    #[command(after_help = "Example:\n  billing-daemon accept-restore")]
    AcceptRestore,
    /// Check every invariant of the ledger; exits 1 if one is broken
    #[command(after_help = "Example:\n  billing-daemon audit --json | jq .violations")]
    Audit {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

impl Cli {
    /// Whether a service manager started this process that must be answered.
    #[cfg(windows)]
    pub(crate) fn is_service(&self) -> bool {
        matches!(self.command, Command::Run { as_service: true, .. })
    }
}

/// What can be done with the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Service {
    /// Write what the system needs to start the daemon at each boot; it is not started yet
    #[command(after_help = "Example:\n  sudo billing-daemon service install")]
    Install(OfService),
    /// Stop the service and take away what installing wrote; configuration and data stay
    #[command(after_help = "Example:\n  sudo billing-daemon service uninstall")]
    Uninstall(OfService),
    /// Start the service
    #[command(after_help = "Example:\n  billing-daemon service start --user")]
    Start(OfService),
    /// Stop the service; runs in progress are completed first
    #[command(after_help = "Example:\n  sudo billing-daemon service stop")]
    Stop(OfService),
    /// Show what the service manager knows of it; exits 1 unless it runs
    #[command(after_help = "Example:\n  billing-daemon service status")]
    Status(OfService),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub(crate) struct OfService {
    /// A service of this user alone, without root
    #[arg(long)]
    pub(crate) user: bool,
    /// Print what would be written and run, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// As on another system
    #[arg(long, value_name = "SYSTEM", value_enum, requires = "dry_run", hide = true)]
    pub(crate) system: Option<System>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Migrate {
    /// Add what is missing
    #[command(after_help = "Example:\n  billing-daemon migrate up")]
    Up,
    /// Remove what `migrate up` created, the record of every charge included; tables that existed before stay
    #[command(after_help = "Example:\n  billing-daemon migrate down --yes")]
    Down {
        /// Confirm the deletion
        #[arg(long)]
        yes: bool,
    },
    /// Show what is applied
    #[command(after_help = "Example:\n  billing-daemon migrate status")]
    Status,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a new file, a .tar.gz, with what a helper needs to see, without passwords
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Charges {
    /// Show one charge or hold: hours, price, what was carried, wallet, run
    #[command(after_help = "Example:\n  billing-daemon charges explain web-1 --at 2026-05-01T12:30:00Z")]
    Explain {
        /// The machine: its id, or its label if no other has it
        instance: String,
        /// An instant in the hours that are asked about [default: the last charge]
        #[arg(long, value_name = "TIME")]
        at: Option<DateTime<Utc>>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What can be done with holds.
#[derive(Debug, Subcommand)]
pub(crate) enum Holds {
    /// List every held instance, its debt, and what to do about it
    #[command(after_help = "Example:\n  billing-daemon holds list --reason no_price --csv")]
    List(HoldsList),
    /// Accept the holds of instances: `status` lists them, and no longer counts them as problems
    #[command(
        after_help = "Example:\n  billing-daemon holds accept web-1 --reason 'free until March' --until 2027-03-01"
    )]
    Accept {
        #[command(flatten)]
        decision: Decision,
        /// When the acceptance ends [default: with the hold]
        #[arg(long, value_name = "TIME", value_parser = time)]
        until: Option<DateTime<Utc>>,
    },
    /// Close the holds of deleted instances: their hours are not charged any more
    #[command(
        after_help = "Example:\n  billing-daemon holds write-off 0199a6b2-7c1e-7d30-9c1f-2b7f0d8e4a55 --reason 'customer left'"
    )]
    WriteOff {
        #[command(flatten)]
        decision: Decision,
    },
}

#[derive(Debug, Args)]
pub(crate) struct HoldsList {
    /// Only instances held for this reason
    #[arg(long, value_name = "REASON", value_parser = reason)]
    pub(crate) reason: Option<Reason>,
    /// Only instances of this organization: its id, slug or name
    #[arg(long, value_name = "ORGANIZATION")]
    pub(crate) organization: Option<String>,
    /// Print one JSON array
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print CSV with a header line
    #[arg(long)]
    pub(crate) csv: bool,
}

/// A decision about holds.
#[derive(Debug, Args)]
pub(crate) struct Decision {
    /// The held instances: an id, or a label that no other held instance has
    #[arg(value_name = "INSTANCE", required = true)]
    pub(crate) instances: Vec<String>,
    /// The reason, for the audit log
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// Print one JSON object for each instance
    #[arg(long)]
    pub(crate) json: bool,
}

fn reason(text: &str) -> Result<Reason, String> {
    let words = || Reason::ALL.map(Reason::as_str).join(", ");
    let known = Reason::ALL.into_iter().find(|reason| reason.as_str() == text);
    known.ok_or_else(|| format!("use one of {}", words()))
}

#[derive(Debug, Args)]
pub(crate) struct Adopt {
    /// Say what would change, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Guard {
    /// Put the panel guard up, or bring it up to date; takes the rights of the owner of the ledger
    #[command(after_help = "Example:\n  billing-daemon guard install")]
    Install,
    /// Take the panel guard down, and nothing else
    #[command(after_help = "Example:\n  billing-daemon guard remove")]
    Remove {
        /// Remove it also while a daemon is alive, which may stop billing then
        #[arg(long)]
        force: bool,
    },
    /// Show how the panel guard stands; exits 1 if it is off
    #[command(after_help = "Example:\n  billing-daemon guard status --json")]
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
#[derive(Debug, Args)]
pub(crate) struct Bill {
    /// Do everything and roll it back
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Approve the hours beyond the catch-up limit of these instances and organizations, for 24 hours: an id, a label, a slug or a
    /// name
    #[arg(long, value_name = "INSTANCE|ORGANIZATION", num_args = 0..)]
    pub(crate) approve_catch_up: Option<Vec<String>>,
    /// Approve the catch-up of every instance
    #[arg(long, requires = "approve_catch_up")]
    pub(crate) all: bool,
    /// Do not approve an instance with more hours due than these
    #[arg(long, value_name = "N", requires = "approve_catch_up")]
    pub(crate) hours: Option<u32>,
    /// The reason, for the audit log
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Charge what a run has announced that waits because it is far more than usual: the amount that was announced, and its
    /// currency where there are several
    #[arg(
        long, value_names = ["AMOUNT", "CURRENCY"], num_args = 1..=2, action = clap::ArgAction::Append,
        conflicts_with = "dry_run"
    )]
    pub(crate) approve: Vec<String>,
    /// Bill although the job is paused
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// How many machines to make up, for a fifth as many organizations
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=5_000_000))]
    pub(crate) instances: u32,
    /// Which fleet to make up: the same number makes the same fleet
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// An empty database to use instead of a temporary file
    #[arg(long, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// Print one JSON object as the last line
    #[arg(long)]
    pub(crate) json: bool,
}

/// What can be done with jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum Jobs {
    /// Show every job, when it runs next and how its last run ended
    #[command(
        after_help = "Example:\n  billing-daemon jobs list --json | jq -r '.[] | select(.late) | .job'"
    )]
    List {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one job and its last runs
    #[command(after_help = "Example:\n  billing-daemon jobs show billing")]
    Show {
        /// Its name
        #[arg(value_name = "NAME")]
        job: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the next scheduled times of a job, or of any cron text
    #[command(
        after_help = "Example:\n  billing-daemon jobs next --cron '30 2 * * *' --timezone Europe/Berlin --from 2027-03-27T00:00:00Z"
    )]
    Next(Next),
    /// Run nothing of a job by schedule until it is resumed; a run under way goes on
    #[command(
        after_help = "Example:\n  billing-daemon jobs pause billing --reason 'prices are being corrected'"
    )]
    Pause(Pause),
    /// Go on with a paused job at its next scheduled time
    #[command(after_help = "Example:\n  billing-daemon jobs resume billing")]
    Resume(Cancel),
    /// Run a job once now, in addition to its schedule
    #[command(after_help = "Example:\n  billing-daemon jobs trigger billing --wait")]
    Trigger(Trigger),
    /// Stop the run of a job that is under way, or give up its retry; withdraw what was asked for
    #[command(after_help = "Example:\n  billing-daemon jobs cancel billing --reason 'wrong prices'")]
    Cancel(Cancel),
    /// Run one scheduled time of a job again
    #[command(after_help = "Example:\n  billing-daemon jobs replay billing 2026-11-22T15:00:00Z --wait")]
    Replay(Replay),
    /// Continue a job's schedule from the present after a clock that was ahead was set back
    #[command(
        after_help = "Example:\n  billing-daemon jobs reset billing --reason 'the host was a year ahead'"
    )]
    Reset(Pause),
    /// Say why a job did not run, or how it did
    #[command(after_help = "Example:\n  billing-daemon jobs explain billing --at 2026-11-22T15:00:00Z")]
    Explain(Explain),
}

#[derive(Debug, Args)]
pub(crate) struct Next {
    /// A job of jobs.toml
    #[arg(value_name = "NAME", conflicts_with = "cron")]
    pub(crate) job: Option<String>,
    /// A cron text instead, of 5 or 6 fields; needs no jobs.toml
    #[arg(long, value_name = "TEXT")]
    pub(crate) cron: Option<String>,
    /// The time zone of the cron text [default: UTC]
    #[arg(long, value_name = "ZONE", requires = "cron")]
    pub(crate) timezone: Option<String>,
    /// Begin here, this instant included [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) from: Option<DateTime<Utc>>,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) count: u32,
    /// Print one JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

/// What every request has.
#[derive(Debug, Args)]
pub(crate) struct Asked {
    /// The job
    #[arg(value_name = "NAME")]
    pub(crate) job: String,
    /// Who asks, for the record [default: the user and the host]
    #[arg(long = "as", value_name = "WHO")]
    by: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Trigger {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Run the job although it is paused
    #[arg(long)]
    pub(crate) force: bool,
    /// Wait for the run and show how it ended; exits 1 unless it is done
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// Which scheduled time, as `runs list` prints it: `2026-11-22 15:00:00` in UTC, also without quotes, or RFC 3339
    #[arg(value_name = "TIME", num_args = 1..=3, required = true)]
    scheduled_time: Vec<String>,
    /// Also if it is done already
    #[arg(long)]
    pub(crate) again: bool,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Wait for the run and show how it ended; exits 1 unless it is done
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The job
    #[arg(value_name = "NAME")]
    pub(crate) job: String,
    /// Which scheduled time [default: the latest]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) at: Option<DateTime<Utc>>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl Replay {
    /// The scheduled time that is meant.
    pub(crate) fn at(&self) -> Result<DateTime<Utc>, Failure> {
        let text = self.scheduled_time.join(" ");
        time(&text).map_err(|problem| Failure::new(Exit::Usage, format!("invalid time `{text}`: {problem}")))
    }
}

macro_rules! signed {
    ($($request:ty),*) => {
        $(impl $request {
            /// Who asks, if that is said.
            pub(crate) fn by(&self) -> Option<&str> {
                self.asked.by.as_deref()
            }
        })*
    };
}

signed!(Pause, Cancel, Trigger, Replay);

/// What can be done with runs.
#[derive(Debug, Subcommand)]
pub(crate) enum Runs {
    /// List runs, and scheduled times without one, newest first
    #[command(after_help = "Example:\n  billing-daemon runs list --job billing --since 2d")]
    List {
        /// Of this job
        #[arg(long, value_name = "NAME")]
        job: Option<String>,
        /// Only runs with this status: done, retrying, dead, interrupted, skipped, missed, paused or rescheduled
        #[arg(long, value_name = "STATUS", value_parser = status)]
        status: Option<RunStatus>,
        /// That started since this time, or so long ago
        #[arg(long, value_name = "TIME|DURATION", value_parser = since)]
        since: Option<Since>,
        /// At most so many; 0 for all
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show everything about one run
    #[command(after_help = "Example:\n  billing-daemon runs show 0199a6b2-7c1e-7d30-9c1f-2b7f0d8e4a55")]
    Show {
        /// Its id
        id: Uuid,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// A time, or a length before now.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Since {
    Time(DateTime<Utc>),
    Ago(Duration),
}

impl Since {
    pub(crate) fn before(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::Time(at) => at,
            Self::Ago(duration) => now - duration,
        }
    }
}

fn since(text: &str) -> Result<Since, String> {
    let either = duration::parse(text).map(Since::Ago).ok().or_else(|| time(text).ok().map(Since::Time));
    either.ok_or_else(|| "write `2d`, or a time such as `2026-11-22T15:00:00Z`".to_owned())
}

/// An instant in RFC 3339, in UTC as tables print it (`2026-11-22 15:00:00`), or a date for its midnight in UTC.
fn time(text: &str) -> Result<DateTime<Utc>, String> {
    let midnight = || text.parse().ok().and_then(|day: NaiveDate| day.and_hms_opt(0, 0, 0));
    let printed = || {
        let text = text.strip_suffix("UTC").unwrap_or(text).trim_end();
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").ok()
    };
    let instant = DateTime::parse_from_rfc3339(text).map(|at| at.to_utc()).ok();
    let either = instant.or_else(|| printed().or_else(midnight).map(|at| at.and_utc()));
    either.ok_or_else(|| {
        "use a time such as `2026-11-22T15:00:00Z` or `2026-11-22 15:00:00` (in UTC)".to_owned()
    })
}

fn status(text: &str) -> Result<RunStatus, String> {
    let words = || RunStatus::ALL.map(RunStatus::as_str).join(", ");
    RunStatus::of(text).ok_or_else(|| format!("write one of {}", words()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The words of a line, as a shell reads it, as far as the examples go.
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
        found.push((path.clone(), command.clone().render_help().to_string()));
        for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
            commands(command, &path, found);
        }
    }

    #[test]
    fn times_are_read_as_they_are_printed() {
        let noon = "2026-11-22T12:00:00Z".parse::<DateTime<Utc>>().expect("RFC 3339");
        for text in [
            "2026-11-22T12:00:00Z",
            "2026-11-22T13:00:00+01:00",
            "2026-11-22 12:00:00",
            "2026-11-22 12:00:00 UTC",
        ] {
            assert_eq!(time(text), Ok(noon), "{text}");
            let line = format!("billing-daemon jobs replay billing {text} --wait");
            let parsed = Cli::try_parse_from(line.split(' ')).expect("valid");
            let Command::Jobs { action: Jobs::Replay(replay) } = parsed.command else { panic!("{line}") };
            assert_eq!(replay.at().ok(), Some(noon), "{line}");
        }
        assert_eq!(time("2026-11-22"), time("2026-11-22 00:00:00"));
        for text in ["12:00:00", "2026-11-22 12:00", "2026-11-22 25:00:00", "UTC", ""] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_help_of_each_command_has_one_example_that_is_a_command_line_of_it() {
        let mut found = Vec::new();
        commands(&Cli::command(), "", &mut found);
        assert!(found.iter().any(|(path, _)| path == "billing-daemon jobs trigger"), "{found:?}");
        for (path, help) in found {
            let (_, examples) =
                help.split_once("\nExample:\n").unwrap_or_else(|| panic!("{path} has no example: {help}"));
            let lines: Vec<_> = examples.lines().filter(|line| !line.is_empty()).collect();
            let [example] = lines.as_slice() else { panic!("{path} has not one example: {examples}") };
            let all = words(example.trim());
            let before =
                |word: &&String| word.as_str() == "sudo" || word.contains('=') && !word.starts_with('-');
            let line = all.iter().skip_while(before);
            let line: Vec<_> =
                line.take_while(|word| !["|", ">"].contains(&word.as_str())).cloned().collect();
            let parsed = Cli::try_parse_from(&line);
            assert!(parsed.is_ok(), "{path}: {example}: {}", parsed.expect_err("it is"));
            assert!(
                line.join(" ").starts_with(&path),
                "{path} has the example of another command: {example}"
            );
        }
    }
}
