//! `audit`: checks every invariant of the ledger, and lists each violation with how to resolve it.

use super::bill;
use crate::{
    commands::{args::JsonArgs, session::Session},
    exit::{Exit, Failure},
    format::count,
    output::{json as say_json, line as say},
};

pub(super) async fn execute(session: &Session<'_>, format: JsonArgs) -> Result<(), Failure> {
    let opened = session.panel_for_reading().await?;
    let audit = billing_jobs::audit::audit(&opened.db)
        .await
        .map_err(|error| Failure::database("audit the ledger", &error))?;
    if format.json {
        say_json(&audit);
    } else {
        for group in audit.violations.chunk_by(|one, next| one.check == next.check) {
            for violation in group {
                say(format!("{}: {}", violation.check, violation.detail));
            }
            say(format!("help: {}", group[0].resolve));
        }
        audit.uncharged.iter().map(bill::uncharged).for_each(|line| say(line.trim_end()));
        let violations = count(audit.violations.len() as u64, "violation");
        say(format!("{} rows checked, {violations}", audit.checked));
    }
    if audit.violations.is_empty() { Ok(()) } else { Err(Failure::silent(Exit::Negative)) }
}
