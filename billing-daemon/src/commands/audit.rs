//! `audit`: every invariant of the ledger, each row that breaks one, and how that is resolved.

use super::bill;
use crate::{
    commands::{args::JsonArgs, session::Session},
    exit::{Exit, Failure},
    output::{json as say_json, line as say},
};

pub(super) async fn execute(session: &Session<'_>, format: JsonArgs) -> Result<(), Failure> {
    let opened = session.panel().await?;
    let audit =
        billing_jobs::audit::audit(&opened.db).await.map_err(|error| Failure::database("audit", &error))?;
    if format.json {
        say_json(&audit);
    } else {
        for of_one_check in audit.violations.chunk_by(|one, next| one.check == next.check) {
            for violation in of_one_check {
                say(format!("{}: {}", violation.check, violation.detail));
            }
            say(format!("help: {}", of_one_check[0].resolve));
        }
        audit.uncharged.iter().map(bill::uncharged).for_each(|line| say(line.trim_end()));
        say(format!("{} rows checked, {} violations", audit.checked, audit.violations.len()));
    }
    if audit.violations.is_empty() { Ok(()) } else { Err(Failure::silent(Exit::Negative)) }
}
