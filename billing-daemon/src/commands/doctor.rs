//! `doctor`: checks for everything that could prevent billing, and writes a support bundle.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use billing_entities::scheduler_audit_log;
use billing_kinds::input_file::read_text;
use billing_scheduler::{Clock, SystemClock};
use billing_store::{Database, DatabaseUrl, Pool, StatementLimit, begin_read};
use clap::Args;
use sea_orm::{DatabaseConnection, DbErr, EntityTrait, QueryOrder, QuerySelect};
use serde_json::{Value, json};

use super::{session::Session, version};
use crate::{
    commands::cli::Common,
    config::{Config, DaemonSettings, environment::Environment, http::HttpSettings, secret_file},
    doctor::{Bundle, Finding, HostFacts, StateFolder, Verdict, examine_database, examine_host},
    exit::{Exit, Failure},
    host::open_files,
    http::Token,
    output::{Mark, checked, json as say_json, line as say},
    plugins::{Plugins, kinds_for_validation},
    runtime::reload::ConfigFile,
    status::{self, Expected, Status},
    telemetry::otel,
};

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Write a support bundle without passwords to this new .tar.gz file
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
}

/// What to do about a wrong configuration.
const CHECK_AGAIN: &str = "correct it; `billing-daemon check` lists all mistakes";
/// The number of the newest runs in a bundle.
const RUNS: u32 = 500;
/// The number of the newest entries of the audit log in a bundle.
const AUDIT_ENTRIES: u64 = 200;

pub(super) async fn execute(common: &Common, plugins: &Plugins, options: &DoctorArgs) -> Result<(), Failure> {
    // As the daemon does, whose limit it checks.
    open_files::raise_limit();
    let mut findings = Vec::new();
    let environment = Environment::from_process(common.env_file.as_deref()).unwrap_or_else(|problems| {
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
        .map_err(|failure| findings.push(Finding::fail("jobs.toml", failure.message, CHECK_AGAIN)))
        .ok();
    let file = source.as_ref().and_then(ConfigFile::path);
    let config = source.as_ref().and_then(|source| configuration(source, &mut findings));
    let daemon = config.as_ref().map_or_else(DaemonSettings::default, |config| config.daemon.clone());
    findings.extend(config.as_ref().and_then(http_token));
    let database = database(&session, &daemon, &mut findings);
    session.start_log(database.as_ref())?;
    let expected = config.as_ref().map(Expected::from).unwrap_or_default();
    let bills = expected.has_billing().unwrap_or(true);
    let mut facts = host_facts(file, environment, &daemon, database.as_ref(), bills);
    facts.exposed.extend(config.as_ref().and_then(Config::token_file).and_then(secret_file::world_readable));
    findings.extend(examine_host(&facts));
    findings.extend(traces());
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
            "wrote {}, with passwords masked: check its content before you send it, and send the log as well",
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
                    "check whether this is intended",
                ));
            }
            Some(config)
        }
        Err(problems) => {
            for problem in problems {
                findings.push(Finding::fail("jobs.toml", problem.to_string(), CHECK_AGAIN));
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
            findings.push(Finding::of_failure("database", failure));
            return None;
        }
    };
    match session.verified_database(&url, daemon) {
        Ok(database) => Some(database),
        Err(failure) => {
            findings.push(Finding::of_failure("database", failure));
            None
        }
    }
}

/// Without its token the daemon does not start.
fn http_token(config: &Config) -> Option<Finding> {
    let source = config.http.as_ref()?.token.as_ref()?;
    Some(match Token::read(source) {
        Ok(_) => Finding::ok("http", format!("the token is in {source:?}")),
        Err(error) => {
            let advice = "correct `token` in [http] of jobs.toml, or its file or variable";
            Finding::fail("http", format!("cannot use the token: {error}"), advice)
        }
    })
}

fn traces() -> Option<Finding> {
    match otel::describe_destination() {
        Ok(collector) => collector.map(|collector| Finding::ok("traces", format!("are sent to {collector}"))),
        Err(warning) => {
            let advice = "correct the environment; docs/operate/traces.md lists its variables";
            Some(Finding::warn("traces", warning, advice))
        }
    }
}

fn host_facts(
    config: Option<&Path>,
    environment: &Environment,
    daemon: &DaemonSettings,
    database: Option<&Database>,
    bills: bool,
) -> HostFacts {
    let mut exposed = environment.world_readable();
    if daemon.database_url.as_ref().is_some_and(|url| !url.secrets().is_empty()) {
        let of_config = config.filter(|path| {
            let text = read_text(path).unwrap_or_default();
            daemon.database_url.iter().flat_map(DatabaseUrl::secrets).any(|secret| text.contains(&secret))
        });
        exposed.extend(of_config.and_then(secret_file::world_readable));
    }
    exposed.extend(
        database
            .and_then(|database| database.url().key_file())
            .and_then(|key| secret_file::world_readable(&key)),
    );
    let sqlite = database.and_then(|database| database.url().file());
    let folder_of = |file: PathBuf| match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let state = match daemon.state_folder() {
        _ if !bills => StateFolder::NotNeeded,
        Some(folder) => StateFolder::Configured(folder),
        None => StateFolder::OfService,
    };
    let folders = [daemon.state_folder(), sqlite.clone().map(folder_of)];
    HostFacts {
        exposed,
        folders: folders.into_iter().flatten().collect(),
        state,
        drain_timeout: daemon.drain_timeout,
        unit: HostFacts::installed_unit(),
        file: sqlite,
    }
}

fn print(findings: &[Finding]) {
    // One line for all granted rights, of which there are dozens.
    let is_granted = |finding: &&Finding| finding.message == "granted";
    let granted = findings.iter().filter(is_granted).count();
    let mut printed = false;
    for finding in findings {
        if is_granted(&finding) {
            if !std::mem::replace(&mut printed, true) {
                line(&Finding::ok("rights", format!("{granted} granted")));
            }
            continue;
        }
        line(finding);
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    say(format!(
        "{} ok, {} warnings, {} failed",
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

/// What the bundle is made from.
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
    if let Some(text) = known.file.and_then(|path| read_text(path).ok()) {
        bundle.toml("jobs.toml", &text);
    }
    if let Some(status) = known.status {
        bundle.json("status.json", &Ok(status));
    }
    if let Some(database) = known.database {
        // `doctor.json` contains the reason if there is no connection.
        if let Ok(db) = database.connect(Pool::Single).await {
            bundle.json("migrations.json", &migrations(&db).await);
            if known.status.is_some() {
                let runs = status::runs(&db, None, RUNS).await;
                bundle.json("runs.json", &runs.map_err(|failure| failure.message));
                bundle.json("audit_log.json", &audit_log(&db).await.map_err(|error| error.to_string()));
            }
            // Nothing was written, so nothing can be lost.
            let _ = db.close().await;
        }
    }
    bundle.write(path, SystemClock.now()).map_err(|error| {
        let exit = match error.kind() {
            ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Internal,
        };
        let message = match error.kind() {
            ErrorKind::AlreadyExists => format!("{} exists: name another file", path.display()),
            _ => format!("cannot write {}: {error}", path.display()),
        };
        Failure::new(exit, message)
    })
}

/// The settings that apply, from the environment, jobs.toml or the defaults.
fn settings(known: &Known<'_>) -> Value {
    let Known { environment, file, config, database, .. } = known;
    let daemon = config.map(|config| {
        // Without `..`, so that a new setting is added here.
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
        let HttpSettings { listen, token, allowed_hosts, allowed_uids, console } = http;
        json!({
            "listen": listen.to_string(),
            "token": token.as_ref().map(|token| format!("{token:?}")),
            "allowed-hosts": allowed_hosts,
            "allowed-uids": allowed_uids,
            "console": console.as_ref().map(|console| format!("{console:?}")),
        })
    });
    json!({
        "file": file,
        "set-by-the-environment": environment.recognised(),
        "database": database.map(|database| database.url().to_string()),
        "daemon": daemon,
        "http": http,
    })
}

async fn migrations(db: &DatabaseConnection) -> Result<Vec<Value>, String> {
    let known = migration::status(db).await.map_err(|error| error.to_string())?;
    Ok(known.into_iter().map(|(name, applied)| json!({ "name": name, "applied": applied })).collect())
}

async fn audit_log(db: &DatabaseConnection) -> Result<Vec<Value>, DbErr> {
    let txn = begin_read(db, StatementLimit::Report).await?;
    let rows = scheduler_audit_log::Entity::find()
        .order_by_desc(scheduler_audit_log::Column::Id)
        .limit(AUDIT_ENTRIES)
        .all(&txn)
        .await?;
    txn.commit().await?;
    let as_json = |row: scheduler_audit_log::Model| {
        // As JSON, so that each setting is on one line, which masking needs.
        let details = serde_json::from_str::<Value>(&row.details).unwrap_or_default();
        json!({
            "id": row.id, "at": row.at.0, "actor": row.actor, "action": row.action, "job": row.job,
            "reason": row.reason, "details": details,
        })
    };
    Ok(rows.into_iter().map(as_json).collect())
}
