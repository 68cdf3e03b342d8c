//! `release`: hands billing back to the panel's built-in biller.

use billing_jobs::billing::{Biller, BillingSettings, Release};
use serde_json::json;

use super::handover::{failed, table};
use crate::{
    commands::{args::JsonArgs, session::Session},
    exit::Failure,
    host::identity::operator_name,
    output::{json as say_json, layout as say_lines},
    status::panel_presence::PanelPresence,
};

pub(super) async fn execute(session: &Session<'_>, format: JsonArgs) -> Result<(), Failure> {
    let opened = session.panel().await?;
    let presence = PanelPresence::detect(&opened).await?;
    let biller = Biller::new(opened.db, opened.panel, BillingSettings::default());
    let release = biller.release(&operator_name()).await.map_err(failed)?;
    if format.json {
        say_json(&json!({
            "anchors": release.anchors,
            "cycles": release.cycles,
            "left_alone": release.left_alone,
            "held": release.held,
            "held_hours": release.held_hours,
            "held_amounts": release.held_amounts,
            "held_unpriced": release.held_unpriced,
            "daemons": release.heartbeats,
            "guard": presence.panel_guard.effective,
        }));
    } else {
        say_lines(&in_words(&release, presence));
    }
    Ok(())
}

fn in_words(release: &Release, presence: PanelPresence) -> String {
    let held = format!("{} hours, {}: the panel applies its own rules", release.held_hours, release.owed());
    let rows = [
        ("anchors", release.anchors, "last_billed_at set to the end of our charges"),
        ("cycles", release.cycles, "written where the panel had none"),
        ("left alone", release.left_alone, "just debited by the panel, which completes them"),
        ("held", release.held, &held),
        ("daemons", release.heartbeats, "no longer hold back the panel"),
    ];
    let rows = rows.map(|(what, count, about)| [what.to_owned(), count.to_string(), about.to_owned()]);
    let guard = if presence.panel_guard.effective {
        "\nthe panel guard is on and admits the panel; to remove it, run `billing-daemon guard remove`"
    } else {
        ""
    };
    format!("{}released: the panel bills from its next run on{guard}", table(&rows))
}
