//! `release`: from our biller back to the panel's.

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
    let held = format!(
        "{} hours, {}: the panel goes by its own rules",
        release.held_hours,
        release.owed().amount_in_words()
    );
    let rows = [
        ("anchors", release.anchors, "last_billed_at moved to where our charges reach"),
        ("cycles", release.cycles, "written where the panel had none"),
        ("left alone", release.left_alone, "the panel has just debited them and writes the rest itself"),
        ("held", release.held, &held),
        ("daemons", release.heartbeats, "no longer keep the panel waiting"),
    ];
    let rows = rows.map(|(what, count, about)| [what.to_owned(), count.to_string(), about.to_owned()]);
    let guard = if presence.panel_guard.effective {
        "\nthe panel guard is on, and lets the panel charge into our ledger; for good: `billing-daemon guard remove`"
    } else {
        ""
    };
    format!("{}released: the panel may bill from its next look on{guard}", table(&rows))
}
