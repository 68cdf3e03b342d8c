//! `accept-restore`: ends the halt of a database that lost committed batches, and billing continues from its last batch.

use billing_jobs::restore_detection::{Acceptance, Batch, accept};

use super::{args::AuthorArgs, session::Session};
use crate::{exit::Failure, format::instant, output::line as say};

pub(super) async fn execute(session: &Session<'_>, author: &AuthorArgs) -> Result<(), Failure> {
    let opened = session.panel().await?;
    let accepted = accept(&opened.db, &author.name()).await;
    let Acceptance { halt, newest } =
        accepted.map_err(|error| Failure::database("accept the restore", &error))?;
    let shown = |batch: &Batch| format!("batch {} of {}", batch.id, instant(batch.at));
    let end = match &newest {
        Some(newest) => format!("the database ends with {}", shown(newest)),
        None => "the database has no batch".to_owned(),
    };
    say(match halt {
        Some(halt) => format!("accepted: {} is missing; {end}", shown(&halt.missing)),
        None => format!("accepted: no daemon has found a missing batch; {end}"),
    });
    say("the next run bills from there on; `billing-daemon jobs trigger billing` runs it now");
    Ok(())
}
