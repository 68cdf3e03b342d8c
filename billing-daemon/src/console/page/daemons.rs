//! The daemons, what they run now, and whether the panel is held back.

use super::prelude::*;
use crate::status::{BillingRole, Daemon, LeaseView, Liveness, PanelStatus};

#[derive(Serialize)]
pub(in crate::console) struct DaemonsPage {
    daemons: Vec<Daemon>,
    leases: Vec<Lease>,
    panel: PanelStatus,
    engine: String,
    schema: String,
}

#[derive(Serialize)]
struct Lease {
    job: String,
    #[serde(flatten)]
    lease: LeaseView,
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<DaemonsPage, Problem> {
    let status = &visit.status;
    let leases =
        status.jobs.iter().filter_map(|job| Some(Lease { job: job.job.clone(), lease: job.lease.clone()? }));
    Ok(DaemonsPage {
        daemons: status.daemons.clone(),
        leases: leases.collect(),
        panel: status.panel.clone(),
        engine: status.engine.clone(),
        schema: status.schema.clone(),
    })
}

fn liveness(daemon: &Daemon) -> Markup {
    match daemon.liveness {
        Liveness::Alive => badge(Tone::Good, "alive"),
        Liveness::Failing => badge(Tone::Bad, "failing"),
        Liveness::Stopped => badge(Tone::Idle, "stopped"),
        Liveness::Dead => badge(Tone::Bad, "dead"),
    }
}

impl View for DaemonsPage {
    fn title(&self) -> String {
        "Daemons".to_owned()
    }

    fn body(&self, visit: &Visit) -> Markup {
        let status = &visit.status;
        let rows = self.daemons.iter().map(|daemon| {
            let role = match daemon.billing_role {
                BillingRole::Active => badge(Tone::Busy, "bills now"),
                BillingRole::Standby => text("standby"),
                BillingRole::None => text("does not bill"),
            };
            let offset = daemon.clock_offset_ms.map_or_else(|| "none".to_owned(), |ms| format!("{ms} ms"));
            [
                html! { (daemon.daemon_id) },
                liveness(daemon),
                role,
                text(daemon.version.as_deref().unwrap_or("unknown")),
                daemon.heartbeat_at.map_or_else(|| text("none"), |at| since(status, at)),
                daemon.last_seen_at.map_or_else(|| text("never"), |at| since(status, at)),
                text(offset),
                text(daemon.error.as_deref().unwrap_or_default()),
            ]
        });
        let leases = self.leases.iter().map(|Lease { job, lease }| {
            [
                link(visit, format!("jobs/{job}"), job),
                text(&lease.holder),
                text(lease.fencing_token.to_string()),
                time(lease.expires_at),
            ]
        });
        let headings =
            ["~daemon", "state", "~billing", "version", "~heartbeat", "~last seen", "#clock offset", "error"];
        let guard = self.panel.guard;
        let yes = |yes: bool| text(if yes { "yes" } else { "no" });
        html! {
            (table(headings, rows, "No daemon has used this database."))
            h2 { "Leases" }
            (table(["job", "holder", "#fencing token", "until"], leases, "No job runs now."))
            h2 { "Panel guard" }
            (facts(&[
                ("panel", text(if self.panel.present { &*self.panel.generation } else { "none found" })),
                ("its own billing", text(if self.panel.billing_off { "switched off" } else { "possible" })),
                ("installed", yes(guard.installed)),
                ("effective", yes(guard.effective)),
                ("outdated", yes(guard.outdated)),
                ("database", text(&self.engine)),
                ("schema", text(&self.schema)),
            ]))
        }
    }
}
