//! What is wrong and which page fixes it, and the figures that an operator checks every day.

use billing_jobs::BILLING_JOB;

use super::prelude::*;
use crate::status::Status;

#[derive(Serialize)]
pub(in crate::console) struct Overview {
    status: Status,
    /// The watched wallets that cover fewer hours than these.
    runway: Runway,
    /// How many deliveries of events were given up, up to 10,001.
    dead_letters: i64,
}

/// How many wallets cover few hours, according to the prepaid policy.
#[expect(clippy::struct_field_names, reason = "the names are keys of JSON")]
#[derive(Default, Serialize)]
struct Runway {
    below_72_hours: i64,
    below_24_hours: i64,
    below_1_hour: i64,
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<Overview, Problem> {
    let below =
        |hours: u32| format!("CAST(coalesce(sum(CASE WHEN runway_hours < {hours} THEN 1 END), 0) AS bigint)");
    let sql = format!(
        "SELECT {} AS below_72, {} AS below_24, {} AS below_1 FROM billing_standings WHERE watched",
        below(72),
        below(24),
        below(1)
    );
    let counts = |row: &sea_orm::QueryResult| {
        Ok(Runway {
            below_72_hours: row.try_get("", "below_72")?,
            below_24_hours: row.try_get("", "below_24")?,
            below_1_hour: row.try_get("", "below_1")?,
        })
    };
    let runway = visit.rows("count the low wallets", &sql, [], counts).await?.pop().unwrap_or_default();
    let dead_letters = super::events::count(visit, "dead").await?;
    Ok(Overview { status: Status::clone(&visit.status), runway, dead_letters })
}

impl View for Overview {
    fn title(&self) -> String {
        "Overview".to_owned()
    }

    fn body(&self, visit: &Visit) -> Markup {
        let status = &self.status;
        html! {
            section aria-label="Problems" {
                @if status.problems.is_empty() {
                    p.notice.good { (badge(Tone::Good, "No problems")) " Billing works and nothing waits for a person." }
                }
                ul.problems {
                    @for problem in status.problems.iter().filter(|problem| problem.kind != "held") {
                        li {
                            (badge(Tone::Bad, &problem.kind.replace('_', " ")))
                            span { (prose(&problem.message)) }
                            @if let Some((path, label)) = place(problem.kind) { (link(visit, path, label)) }
                        }
                    }
                    // The table of held instances has the reasons.
                    @if status.problems.iter().any(|problem| problem.kind == "held") {
                        @let held = status.holds.iter().map(|held| held.owed.instances).sum();
                        li {
                            (badge(Tone::Bad, "held"))
                            span { (grouped(held)) " instances are held for " (status.holds.len()) " reasons" }
                            (link(visit, "holds", "See the holds"))
                        }
                    }
                }
            }
            section aria-label="Billing" { h2 { "Billing" } (self.billing(visit)) }
            section aria-label="Money" {
                h2 { "Money" }
                (facts(&[
                    ("arrears", text(status.arrears.to_string())),
                    ("runway below 72 h", link(visit, "wallets", format!("{} wallets", self.runway.below_72_hours))),
                    ("below 24 h", text(format!("{} wallets", self.runway.below_24_hours))),
                    ("below 1 h", text(format!("{} wallets", self.runway.below_1_hour))),
                    ("dead letters", link(visit, "events?status=dead", super::events::counted(self.dead_letters))),
                ]))
                (self.holds(visit))
            }
        }
    }
}

/// The page that shows what a problem is about.
fn place(kind: &str) -> Option<(&'static str, &'static str)> {
    Some(match kind {
        "billing_paused" | "billing_silent" | "billing_failed" => ("jobs/billing", "See the job"),
        "spike" => ("approvals", "See the approval"),
        "held" => ("holds", "See the holds"),
        "delivery_dead" => ("events?status=dead", "See the dead letters"),
        "no_daemon" | "daemon_dead" | "daemon_failing" | "clock_offset" | "panel_guard" => {
            ("daemons", "See the daemons")
        }
        "job_late" | "job_ahead" => ("jobs", "See the jobs"),
        _ => return None,
    })
}

impl Overview {
    fn billing(&self, visit: &Visit) -> Markup {
        let status = &self.status;
        let billing = status.job(BILLING_JOB);
        let lease = billing.and_then(|job| job.lease.as_ref());
        let guard = match status.panel.guard {
            guard if guard.effective => badge(Tone::Good, "on"),
            _ if status.lacks_guard() => badge(Tone::Bad, "missing"),
            _ => badge(Tone::Idle, "not needed"),
        };
        let never = || text("never");
        let last_run = status.last_run.as_ref().map_or_else(never, |run| {
            let charged = run.totals.as_ref().map(|totals| totals.amounts().to_string());
            html! {
                (link(visit, format!("runs/{}", run.id), run_badge(run)))
                " in " (milliseconds(run.duration_ms)) @if let Some(charged) = charged { ", charged " (charged) }
            }
        });
        let alive = status.daemons.iter().filter(|daemon| daemon.liveness.is_alive()).count();
        facts(&[
            ("last success", status.last_success_at.map_or_else(never, |at| since(status, at))),
            ("last run", last_run),
            ("next run", billing.and_then(|job| job.due_at).map_or_else(|| text("not scheduled"), time)),
            (
                "runs on",
                lease.map_or_else(
                    || text("no daemon now"),
                    |lease| text(format!("{}, token {}", lease.holder, lease.fencing_token)),
                ),
            ),
            ("daemons alive", text(alive.to_string())),
            ("panel guard", guard),
        ])
    }

    fn holds(&self, visit: &Visit) -> Markup {
        let rows = self.status.holds.iter().map(|held| {
            [
                link(visit, format!("holds?reason={}", held.reason), &held.reason),
                text(grouped(held.owed.instances)),
                text(grouped(held.owed.hours)),
                text(held.owed.amounts.to_string()),
                since(&self.status, held.since),
                prose(&held.advice),
            ]
        });
        html! {
            h3 { "Held instances" }
            (table(["reason", "#instances", "#hours", "#amount", "since", "what resolves it"], rows, "No instance is held."))
        }
    }
}
