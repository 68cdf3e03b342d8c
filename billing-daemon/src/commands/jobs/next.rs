//! `jobs next`: the next times of a schedule. A cron expression needs neither a database nor a configuration.

use billing_scheduler::{Clock, Schedule, ScheduleError, SystemClock};
use chrono::{DateTime, SecondsFormat, SubsecRound, TimeDelta, Utc};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    commands::{args::parse_time, cli::Common, session::Session},
    config::did_you_mean,
    exit::{Exit, Failure},
    output::{json as say_json, layout as say_lines, line as say},
    plugins::Plugins,
};

#[derive(Debug, Args)]
pub(crate) struct NextArgs {
    /// The job's name; omit it with --cron
    #[arg(value_name = "NAME", conflicts_with = "cron")]
    job: Option<String>,
    /// A cron expression of 5 or 6 fields; needs no jobs.toml
    #[arg(long, value_name = "TEXT")]
    cron: Option<String>,
    /// The time zone of the cron expression [default: UTC]
    #[arg(long, value_name = "ZONE", requires = "cron")]
    timezone: Option<String>,
    /// Earliest time to print, inclusive [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<DateTime<Utc>>,
    /// Number of scheduled times to print [default: 5]
    #[arg(
        long, value_name = "N", default_value_t = 5, hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    count: u32,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(common: &Common, plugins: &Plugins, options: &NextArgs) -> Result<(), Failure> {
    let schedule = match (&options.job, &options.cron) {
        (Some(job), None) => of_job(&Session::new(common, plugins)?, job)?,
        (None, Some(cron)) => Schedule::cron(cron, options.timezone.as_deref().unwrap_or("UTC"))
            .map_err(|error| Failure::new(Exit::Usage, with_help(&error)))?,
        _ => {
            let message = "name a job of jobs.toml, or a cron expression with --cron \"30 2 * * *\" --timezone Europe/Berlin";
            return Err(Failure::new(Exit::Usage, message));
        }
    };
    // The instant is included, and scheduled times are whole seconds.
    let from = options.from.unwrap_or_else(|| SystemClock.now());
    let mut at = from.trunc_subsecs(0);
    if at == from {
        at -= TimeDelta::seconds(1);
    }
    let mut times = Vec::new();
    for _ in 0..options.count {
        match schedule.next_after(at) {
            Ok(Some(next)) => at = next,
            Ok(None) => break,
            Err(error) => return Err(uncomputable(&error)),
        }
        times.push(at.to_rfc3339_opts(SecondsFormat::Secs, true));
    }
    if options.json {
        say_json(&Value::Array(times.into_iter().map(|at| json!({ "scheduled_at": at })).collect()));
    } else if times.is_empty() {
        say("no scheduled time is left");
    } else {
        say(schedule.words());
        say_lines(&times.join("\n"));
    }
    Ok(())
}

fn of_job(session: &Session<'_>, name: &str) -> Result<Schedule, Failure> {
    let jobs = &session.load()?.config.jobs;
    if let Some((spec, _)) = jobs.iter().find(|(spec, _)| spec.name == name) {
        return Ok(spec.schedule.clone());
    }
    let hint = did_you_mean(name, jobs.iter().map(|(spec, _)| spec.name.as_str()));
    let hint = hint.map(|hint| format!(", {hint}")).unwrap_or_default();
    Err(Failure::new(Exit::Usage, format!("jobs.toml has no enabled job `{name}`{hint}")))
}

/// The error and, for a cron expression, how to correct it.
fn with_help(error: &ScheduleError) -> String {
    match error {
        ScheduleError::Cron(error) => format!("{error}, {}", error.help),
        error => error.to_string(),
    }
}

fn uncomputable(error: &ScheduleError) -> Failure {
    Failure::new(Exit::Internal, error)
}
