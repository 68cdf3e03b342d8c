//! `doctor`: what could keep billing from working, and what to do about it.

use std::path::{Path, PathBuf};

use billing_entities::billing_job_runs;
use billing_jobs::begin_read;
use sea_orm::{DbErr, EntityTrait, QueryOrder, QuerySelect};
use serde_json::{Value, json};

use super::{config_file, log, quiet_filter, reach, say, width};
use crate::{
    Plugins,
    cli::{Common, Doctor},
    config::{Config, DaemonSettings},
    database::{Database, Pool},
    database_url::DatabaseUrl,
    doctor::{Bundle, Finding, Machine, Verdict, examine_database, examine_machine},
    environment::Environment,
    exit::{Exit, Failure},
    logging::LogOutput,
    reload::Source,
    secret_file,
    status::{Expected, Status, wrapped},
};

/// Of the history, a bundle has so many runs.
const RUNS: u64 = 500;

pub(super) async fn execute(common: &Common, plugins: &Plugins, options: &Doctor) -> Result<(), Failure> {
    let mut findings = Vec::new();
    let environment = Environment::of_process(common.env_file.as_deref()).unwrap_or_else(|problems| {
        for problem in problems {
            findings.push(Finding::fail("environment", problem.to_string(), "correct it"));
        }
        Environment::default()
    });
    let file = config_file(common);
    let config = file.as_deref().and_then(|path| configuration(path, plugins, &environment, &mut findings));
    if file.is_none() {
        let advice = "name one with --config, or put it beside you: the repository has one with every key";
        findings.push(Finding::warn("jobs.toml", "there is none", advice));
    }
    let daemon = config.as_ref().map_or_else(DaemonSettings::default, |config| config.daemon.clone());
    let database = database(common, &environment, &daemon, &mut findings);
    log(common, LogOutput::Stderr, &quiet_filter(&environment)?, database.as_ref())?;
    findings.extend(examine_machine(&machine(file.as_deref(), &environment, &daemon, database.as_ref())));
    let expected = config.as_ref().map(Expected::from).unwrap_or_default();
    let mut status = None;
    if let Some(database) = &database {
        let (found, read) = examine_database(database, &expected).await;
        findings.extend(found);
        status = read;
    }
    if options.json {
        say(json!({ "ok": worst(&findings) != Verdict::Fail, "findings": findings }));
    } else {
        print(&findings);
    }
    if let Some(folder) = &options.bundle {
        let bundled = bundle(folder, file.as_deref(), database.as_ref(), &findings, status.as_ref()).await;
        bundled.map_err(|message| Failure::new(Exit::Internal, message))?;
        super::complain(&format!(
            "{} holds what a helper needs, without passwords: look through it before you give it away",
            folder.display()
        ));
    }
    if worst(&findings) == Verdict::Fail { Err(Failure::silent(Exit::Negative)) } else { Ok(()) }
}

fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok)
}

fn configuration(
    path: &Path,
    plugins: &Plugins,
    environment: &Environment,
    findings: &mut Vec<Finding>,
) -> Option<Config> {
    let advice = "correct it; `billing-daemon check` reads it again";
    let source = match Source::open(path, environment.clone(), plugins) {
        Ok(source) => source,
        Err(error) => {
            findings.push(Finding::fail("jobs.toml", format!("{}: {error}", path.display()), advice));
            return None;
        }
    };
    match source.config() {
        Ok(config) => {
            let names: Vec<_> = config.jobs.iter().map(|(spec, _)| spec.name.as_str()).collect();
            let message = format!("{}: {} jobs ({})", path.display(), names.len(), names.join(", "));
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
                findings.push(Finding::fail("jobs.toml", problem.to_string(), advice));
            }
            None
        }
    }
}

fn database(
    common: &Common,
    environment: &Environment,
    daemon: &DaemonSettings,
    findings: &mut Vec<Finding>,
) -> Option<Database> {
    let url = match environment.database_url() {
        Ok(url) => url.or_else(|| daemon.database_url.clone()),
        Err(problem) => {
            findings.push(Finding::fail("database", problem.to_string(), "correct it"));
            return None;
        }
    };
    let Some(url) = url else {
        findings.push(Finding::fail("database", "no address is known", "set DATABASE_URL"));
        return None;
    };
    // What others may read is told below, and hinders nobody from looking.
    let looking = Common { allow_readable_secrets: true, ..common.clone() };
    match reach(&looking, url, daemon) {
        Ok(database) => Some(database),
        Err(failure) => {
            findings.push(Finding::fail("database", failure.message, "the message says what to do"));
            None
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
    let folders = [daemon.state_dir.clone(), sqlite.map(folder_of)];
    Machine {
        exposed,
        folders: folders.into_iter().flatten().collect(),
        drain_timeout: daemon.drain_timeout,
        unit: Machine::installed_unit(),
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

fn line(finding: &Finding) {
    let head = format!("{:4}  {}: {}", finding.verdict, finding.check, finding.message);
    for line in wrapped(&head, width(), 8) {
        say(line.trim_end());
    }
    if let Some(advice) = &finding.advice {
        for line in wrapped(&format!("      -> {advice}"), width(), 9) {
            say(line.trim_end());
        }
    }
}

async fn bundle(
    folder: &Path,
    config: Option<&Path>,
    database: Option<&Database>,
    findings: &[Finding],
    status: Option<&Status>,
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", folder.display());
    let bundle = Bundle::create(folder, database.map(Database::url)).map_err(failed)?;
    bundle.json("doctor.json", &findings).map_err(failed)?;
    if let Some(status) = status {
        bundle.json("status.json", status).map_err(failed)?;
    }
    if let Some(text) = config.and_then(|path| std::fs::read_to_string(path).ok()) {
        bundle.text("jobs.toml", &text).map_err(failed)?;
    }
    if let (Some(database), true) = (database, status.is_some()) {
        let runs = runs(database).await.unwrap_or_else(|error| vec![json!({ "error": error })]);
        bundle.json("runs.json", &runs).map_err(failed)?;
    }
    let about = format!(
        "billing-daemon {}\n{} {}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    );
    bundle.text("version.txt", &about).map_err(failed)
}

async fn runs(database: &Database) -> Result<Vec<Value>, String> {
    let text = |error: DbErr| error.to_string();
    let db = database.connect(Pool::Single).await.map_err(|error| error.to_string())?;
    let txn = begin_read(&db).await.map_err(text)?;
    let runs = billing_job_runs::Entity::find()
        .order_by_desc(billing_job_runs::Column::StartedAt)
        .limit(RUNS)
        .all(&txn)
        .await
        .map_err(text)?;
    txn.commit().await.map_err(text)?;
    let as_json = |run: billing_job_runs::Model| {
        json!({
            "id": run.id.0, "job": run.job, "node": run.node, "scheduled_at": run.scheduled_at.0, "status": run.status,
            "triggered_by": run.triggered_by, "attempt": run.attempt, "fence": run.fence, "daemon": run.daemon,
            "started_at": run.started_at.0, "finished_at": run.finished_at.0, "lateness_ms": run.lateness_ms,
            "items": run.items, "reason": run.reason, "error": run.error, "details": run.details,
        })
    };
    Ok(runs.into_iter().map(as_json).collect())
}
