//! `status`: how billing stands; a check for monitoring.

use super::width;
use crate::{
    commands::{args::JsonArgs, session::Session},
    exit::{Exit, Failure},
    output::{json as say_json, layout as say_lines},
    status::{self, Expected},
};

pub(super) async fn execute(session: &Session<'_>, format: JsonArgs) -> Result<(), Failure> {
    let expected = Expected::from(session.announced_config()?);
    let opened = session.panel_without_retry().await?;
    let status = status::read(&opened, &expected).await?;
    if format.json {
        say_json(&(status));
    } else {
        say_lines(status::in_words(&status, width()).trim_end());
    }
    if status.ok { Ok(()) } else { Err(Failure::silent(Exit::Negative)) }
}
