//! `accept-restore`: billing goes on from where a restored database stands.

use billing_jobs::{
    BILLING_JOB,
    billing::{Biller, BillingSettings},
};
use billing_store::audit_log::{self, AuditEvent};
use serde_json::json;

use super::session::Session;
use crate::{
    exit::{Exit, Failure},
    host::identity::operator_name,
    output::line as say,
    panel_database,
};

pub(super) async fn execute(session: &Session<'_>) -> Result<(), Failure> {
    let database = session.database()?;
    let settings = &session.load()?.config.daemon;
    let last_commit = panel_database::last_commit(settings, &database).ok_or_else(|| {
        let message =
            "nothing is noted on this machine: set `state-dir` in the [daemon] section of jobs.toml";
        Failure::new(Exit::Configuration, message)
    })?;
    let noted = |error| Failure::new(Exit::Internal, format!("{}: {error}", last_commit.file().display()));
    let opened = panel_database::open(&database).await?;
    let biller = Biller::new(opened.db.clone(), opened.panel, BillingSettings::default());
    let here =
        biller.last_batch().await.map_err(|error| Failure::database("look for the last batch", &error))?;
    let before = last_commit.batch().map_err(noted)?;
    if here < before {
        let entry = AuditEvent {
            by: operator_name(),
            action: "accept a restore",
            job: BILLING_JOB.to_owned(),
            reason: None,
            details: json!({ "before": { "batch": before }, "after": { "batch": here } }),
        };
        audit_log::append_in_own_transaction(&opened.db, &entry)
            .await
            .map_err(|error| Failure::database("put it on record", &error))?;
    }
    last_commit.set(here).map_err(noted)?;
    if here < before {
        say(format!(
            "accepted: the database ends at batch {here}; batches {} to {before} are gone",
            here + 1
        ));
    } else {
        say(format!("nothing to accept: the database ends at batch {here}, and batch {before} was noted"));
    }
    Ok(())
}
