//! `status`: the state of billing, and a check for monitoring.

use crate::{
    commands::{args::JsonArgs, session::Session},
    exit::{Exit, Failure},
    output::{json as say_json, layout as say_lines, render_status, width},
    status::{self, Expected},
};

pub(super) async fn execute(session: &Session<'_>, format: JsonArgs) -> Result<(), Failure> {
    let expected = Expected::from(session.announced_config()?);
    let opened = session.panel_for_reading().await?;
    let status = status::read(&opened, &expected).await?;
    if format.json {
        say_json(&status);
    } else {
        say_lines(&render_status(&status, width()));
    }
    if status.ok { Ok(()) } else { Err(Failure::silent(Exit::Negative)) }
}
