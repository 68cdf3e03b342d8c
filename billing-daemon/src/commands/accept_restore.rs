//! `accept-restore`: billing continues from the last batch of a restored database.

use billing_jobs::{
    BILLING_JOB,
    billing::{Biller, BillingSettings},
};
use serde_json::json;

use super::{append_to_audit_log, session::Session};
use crate::{
    exit::{Exit, Failure},
    output::line as say,
    panel_database,
};

pub(super) async fn execute(session: &Session<'_>) -> Result<(), Failure> {
    let database = session.database()?;
    let settings = &session.load()?.config.daemon;
    let last_commit = panel_database::last_commit(settings, &database).ok_or_else(|| {
        Failure::new(Exit::Configuration, "cannot find the last committed batch: there is no state folder")
            .help("set `state-dir` in the [daemon] section of jobs.toml")
    })?;
    let failed = |error| Failure::new(Exit::Internal, format!("{}: {error}", last_commit.file().display()));
    let opened = panel_database::open(&database).await?;
    let biller = Biller::new(opened.db.clone(), opened.panel, BillingSettings::default());
    let here = biller.last_batch().await.map_err(|error| Failure::database("read the last batch", &error))?;
    let before = last_commit.batch().map_err(failed)?;
    if here < before {
        let details = json!({ "before": { "batch": before }, "after": { "batch": here } });
        append_to_audit_log(&opened.db, "accept a restore", (BILLING_JOB, None), details).await?;
    }
    last_commit.set(here).map_err(failed)?;
    if here < before {
        say(format!(
            "accepted: the database ends at batch {here}; batches {} to {before} are gone",
            here + 1
        ));
    } else {
        say(format!(
            "nothing to accept: the database ends at batch {here}, and {before} is the last committed batch"
        ));
    }
    Ok(())
}
