//! `doctor`: what could keep billing from working, and what to do about it.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use billing_entities::{scheduler_audit_log, scheduler_runs};
use billing_scheduler::{Clock, SystemClock};
use billing_store::begin_read;
use clap::Args;
use sea_orm::{DatabaseConnection, DbErr, EntityTrait, QueryOrder, QuerySelect};
use serde_json::{Value, json};

use super::{session::Session, version};
use crate::{
    commands::cli::Common,
    config::{Config, DaemonSettings, environment::Environment, http::HttpSettings, secret_file},
    doctor::{Bundle, Finding, Machine, Verdict, examine_database, examine_machine},
    exit::{Exit, Failure},
    output::{Mark, checked, json as say_json, line as say},
    plugins::{Plugins, kinds_for_validation},
    runtime::reload::ConfigFile,
    status::{Expected, Status},
    telemetry::otel,
};
use billing_store::{Database, DatabaseUrl, Pool};

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Write a support bundle, a new .tar.gz file without passwords
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
}

/// What to do about a wrong configuration.
const READ_AGAIN: &str = "correct it; `billing-daemon check` reads it again";
/// Of the history, a bundle has so many runs.
const RUNS: u64 = 500;
/// And of what people did, so many entries.
const ENTRIES: u64 = 200;

pub(super) async fn execute(common: &Common, plugins: &Plugins, options: &DoctorArgs) -> Result<(), Failure> {
    let mut findings = Vec::new();
    let environment = Environment::of_process(common.env_file.as_deref()).unwrap_or_else(|problems| {
        for problem in problems {
            findings.push(Finding::fail("environment", problem.to_string(), "correct it"));
        }
        Environment::default()
    });
    for warning in environment.warnings() {
        findings.push(Finding::warn("environment", warning.to_string(), "correct it"));
    }
    // What others can read is a finding below, and must not end the checks.
    let common = &Common { allow_readable_secrets: true, ..common.clone() };
    let session = Session::with_environment(common, plugins, environment);
    let environment = &session.environment;
    let source = session
        .config_file()
        .map_err(|failure| findings.push(Finding::fail("jobs.toml", failure.message, READ_AGAIN)))
        .ok();
    let file = source.as_ref().and_then(ConfigFile::path);
    let config = source.as_ref().and_then(|source| configuration(source, &mut findings));
    let daemon = config.as_ref().map_or_else(DaemonSettings::default, |config| config.daemon.clone());
    let database = database(&session, &daemon, &mut findings);
    session.start_log(database.as_ref())?;
    findings.extend(examine_machine(&machine(file, environment, &daemon, database.as_ref())));
    findings.extend(traces(environment));
    let expected = config.as_ref().map(Expected::from).unwrap_or_default();
    let mut status = None;
    if let Some(database) = &database {
        let (found, read) = examine_database(database, &expected).await;
        findings.extend(found);
        status = read;
    }
    if options.json {
        say_json(&json!({ "ok": worst(&findings) != Verdict::Fail, "findings": findings }));
    } else {
        print(&findings);
    }
    if let Some(path) = &options.bundle {
        let known = Known {
            environment,
            file,
            config: config.as_ref(),
            database: database.as_ref(),
            findings: &findings,
            status: status.as_ref(),
        };
        bundle(path, &known, plugins).await?;
        super::complain(&format!(
            "{} holds what a helper needs, without passwords: look through it before you give it away, and send the log along",
            path.display()
        ));
    }
    if worst(&findings) == Verdict::Fail { Err(Failure::silent(Exit::Negative)) } else { Ok(()) }
}

fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok)
}

fn configuration(source: &ConfigFile, findings: &mut Vec<Finding>) -> Option<Config> {
    match source.config() {
        Ok(config) => {
            let names: Vec<_> = config.jobs.iter().map(|(spec, _)| spec.name.as_str()).collect();
            let message = format!("{}: {} jobs ({})", source.name(), names.len(), names.join(", "));
            findings.push(Finding::ok("jobs.toml", message));
            for warning in &config.warnings {
                findings.push(Finding::warn(
                    "jobs.toml",
                    warning.to_string(),
                    "see whether that is intended",
                ));
            }
            Some(config)
        }
        Err(problems) => {
            for problem in problems {
                findings.push(Finding::fail("jobs.toml", problem.to_string(), READ_AGAIN));
            }
            None
        }
    }
}

fn database(session: &Session<'_>, daemon: &DaemonSettings, findings: &mut Vec<Finding>) -> Option<Database> {
    let url = match session.environment.database_url() {
        Ok(url) => url.or_else(|| daemon.database_url.clone()),
        Err(problem) => {
            findings.push(Finding::fail("database", problem.to_string(), "correct it"));
            return None;
        }
    };
    let url = match session.require_url(url) {
        Ok(url) => url,
        Err(failure) => {
            findings.push(Finding::fail("database", failure.message, "set DATABASE_URL"));
            return None;
        }
    };
    match session.verified_database(&url, daemon) {
        Ok(database) => Some(database),
        Err(failure) => {
            findings.push(Finding::fail("database", failure.message, "the message says what to do"));
            None
        }
    }
}

fn traces(environment: &Environment) -> Vec<Finding> {
    match otel::outlook(environment) {
        Ok(None) => Vec::new(),
        Ok(Some(collector)) => vec![Finding::ok("traces", format!("go to {collector}"))],
        Err(warnings) => {
            let advice = "correct the environment; docs/operate/traces.md lists its variables";
            warnings.into_iter().map(|warning| Finding::warn("traces", warning, advice)).collect()
        }
    }
}

fn machine(
    config: Option<&Path>,
    environment: &Environment,
    daemon: &DaemonSettings,
    database: Option<&Database>,
) -> Machine {
    let mut exposed = environment.exposed();
    if daemon.database_url.as_ref().is_some_and(|url| !url.secrets().is_empty()) {
        let of_config = config.filter(|path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            daemon.database_url.iter().flat_map(DatabaseUrl::secrets).any(|secret| text.contains(&secret))
        });
        exposed.extend(of_config.and_then(secret_file::exposed));
    }
    exposed.extend(
        database.and_then(|database| database.url().key_file()).and_then(|key| secret_file::exposed(&key)),
    );
    let sqlite = database.and_then(|database| database.url().file());
    let folder_of = |file: PathBuf| match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let folders = [daemon.state_dir.clone(), sqlite.clone().map(folder_of)];
    Machine {
        exposed,
        folders: folders.into_iter().flatten().collect(),
        drain_timeout: daemon.drain_timeout,
        unit: Machine::installed_unit(),
        file: sqlite,
    }
}

fn print(findings: &[Finding]) {
    // Rights come by the dozen: those that are granted make one line.
    let is_granted = |finding: &&Finding| finding.message == "granted";
    let granted = findings.iter().filter(is_granted).count();
    let mut told = false;
    for finding in findings {
        if is_granted(&finding) {
            if !std::mem::replace(&mut told, true) {
                line(&Finding::ok("rights", format!("{granted} granted")));
            }
            continue;
        }
        line(finding);
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    say(format!(
        "{} ok, {} to know, {} failed",
        count(Verdict::Ok),
        count(Verdict::Warn),
        count(Verdict::Fail)
    ));
}

fn line(Finding { check, verdict, message, advice }: &Finding) {
    let mark = match verdict {
        Verdict::Ok => Mark::Ok,
        Verdict::Warn => Mark::Warn,
        Verdict::Fail => Mark::Fail,
    };
    checked(mark, &format!("{check}: {message}"), advice.as_deref());
}

/// What is known of the daemon, for somebody who cannot look at it.
struct Known<'a> {
    environment: &'a Environment,
    file: Option<&'a Path>,
    config: Option<&'a Config>,
    database: Option<&'a Database>,
    findings: &'a [Finding],
    status: Option<&'a Status>,
}

async fn bundle(path: &Path, known: &Known<'_>, plugins: &Plugins) -> Result<(), Failure> {
    let of_database = known.database.map(|database| database.url().secrets());
    let of_jobs = known.config.map(|config| config.secrets(&kinds_for_validation(plugins)));
    let mut bundle = Bundle::new([of_database, of_jobs].into_iter().flatten().flatten());
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    bundle.text("version.txt", &format!("{}\nsystem    {os} {arch}\n", version::in_words().join("\n")));
    bundle.json("doctor.json", &Ok(known.findings));
    bundle.json("settings.json", &Ok(settings(known)));
    if let Some(text) = known.file.and_then(|path| std::fs::read_to_string(path).ok()) {
        bundle.toml("jobs.toml", &text);
    }
    if let Some(status) = known.status {
        bundle.json("status.json", &Ok(status));
    }
    if let Some(database) = known.database {
        // Without the database, `doctor.json` says why.
        if let Ok(db) = database.connect(Pool::Single).await {
            bundle.json("migrations.json", &migrations(&db).await);
            if known.status.is_some() {
                bundle.json("runs.json", &runs(&db).await.map_err(|error| error.to_string()));
                bundle.json("record.json", &record(&db).await.map_err(|error| error.to_string()));
            }
            // Nothing was written.
            let _ = db.close().await;
        }
    }
    bundle.write(path, SystemClock.now()).map_err(|error| {
        let exit = match error.kind() {
            ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Internal,
        };
        let message = match error.kind() {
            ErrorKind::AlreadyExists => format!("{} is there already: name another file", path.display()),
            _ => format!("cannot write {}: {error}", path.display()),
        };
        Failure::new(exit, message)
    })
}

/// What is in force, whether the environment, jobs.toml or nobody said so.
fn settings(known: &Known<'_>) -> Value {
    let Known { environment, file, config, database, .. } = known;
    let daemon = config.map(|config| {
        // Whoever adds a setting is told to add it here.
        let DaemonSettings {
            database_url: _,
            log_filter,
            drain_timeout,
            lease_ttl,
            state_dir,
            panel_billing,
            allow_unverified_database,
        } = &config.daemon;
        json!({
            "log-level": log_filter.to_string(),
            "drain-timeout": humantime::format_duration(*drain_timeout).to_string(),
            "lease-ttl": humantime::format_duration(*lease_ttl).to_string(),
            "state-dir": state_dir,
            "panel-billing": format!("{panel_billing:?}").to_lowercase(),
            "allow-unverified-database": allow_unverified_database,
            "billing-interval-minutes": config.billing_interval.map(|interval| interval.as_secs() / 60),
        })
    });
    let http = config.and_then(|config| config.http.as_ref()).map(|http| {
        let HttpSettings { listen, allowed_hosts, allowed_uids } = http;
        json!({ "listen": listen.to_string(), "allowed-hosts": allowed_hosts, "allowed-uids": allowed_uids })
    });
    json!({
        "file": file,
        "set-by-the-environment": environment.known(),
        "database": database.map(|database| database.url().to_string()),
        "daemon": daemon,
        "http": http,
    })
}

async fn migrations(db: &DatabaseConnection) -> Result<Vec<Value>, String> {
    let known = migration::status(db).await.map_err(|error| error.to_string())?;
    Ok(known.into_iter().map(|(name, applied)| json!({ "name": name, "applied": applied })).collect())
}

async fn runs(db: &DatabaseConnection) -> Result<Vec<Value>, DbErr> {
    let txn = begin_read(db).await?;
    let runs = scheduler_runs::Entity::find()
        .order_by_desc(scheduler_runs::Column::StartedAt)
        .limit(RUNS)
        .all(&txn)
        .await?;
    txn.commit().await?;
    let as_json = |run: scheduler_runs::Model| {
        json!({
            "id": run.id.0, "job": run.job, "node": run.node, "scheduled_at": run.scheduled_at.0, "status": run.status,
            "cause": run.cause, "attempt": run.attempt, "fencing_token": run.fencing_token, "daemon_id": run.daemon_id,
            "started_at": run.started_at.0, "finished_at": run.finished_at.0, "lateness_ms": run.lateness_ms,
            "items": run.items, "reason": run.reason, "error": run.error, "details": run.details,
        })
    };
    Ok(runs.into_iter().map(as_json).collect())
}

/// What people asked for and changed.
async fn record(db: &DatabaseConnection) -> Result<Vec<Value>, DbErr> {
    let txn = begin_read(db).await?;
    let rows = scheduler_audit_log::Entity::find()
        .order_by_desc(scheduler_audit_log::Column::Id)
        .limit(ENTRIES)
        .all(&txn)
        .await?;
    txn.commit().await?;
    let as_json = |row: scheduler_audit_log::Model| {
        // As JSON, so that each setting in it is on a line of its own.
        let details = serde_json::from_str::<Value>(&row.details).unwrap_or_default();
        json!({
            "id": row.id, "at": row.at.0, "actor": row.actor, "action": row.action, "job": row.job,
            "reason": row.reason, "details": details,
        })
    };
    Ok(rows.into_iter().map(as_json).collect())
}
