//! One run: what started it, how it ended, and what it charged.

use billing_entities::{Id, billing_batches};
use billing_jobs::{
    BILLING_JOB,
    billing::{Biller, BillingSettings},
};
use billing_scheduler::{RunFilter, RunStatus};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use uuid::Uuid;

use super::{job::runs, prelude::*};
use crate::{format::instant, status::RunView};

/// How many batches are shown.
const BATCHES: u64 = 50;
/// How many runs of the same scheduled time are shown.
const ATTEMPTS: u32 = 20;

#[derive(Serialize)]
pub(in crate::console) struct RunPage {
    run: RunView,
    /// The other runs of the same scheduled time, the newest first.
    attempts: Vec<RunView>,
    /// The first batches of a billing run.
    batches: Vec<Batch>,
}

#[derive(Serialize)]
struct Batch {
    id: i64,
    committed_at: DateTime<Utc>,
    fencing_token: i64,
    instances: i32,
    charges: i32,
    held: i32,
    hours: i64,
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<RunPage, Problem> {
    let id = visit.param("id");
    let known = match id.parse() {
        Ok(id) => visit.runs(&RunFilter { id: Some(id), limit: 1, ..RunFilter::default() }).await?.pop(),
        Err(_) => None,
    };
    let Some(mut run) = known else { return Err(unknown(visit, id).await?) };
    let same = RunFilter {
        job: Some(run.job.clone()),
        scheduled_at: Some(run.scheduled_at),
        limit: ATTEMPTS,
        ..RunFilter::default()
    };
    let mut attempts = visit.runs(&same).await?;
    attempts.retain(|attempt| attempt.id != run.id);
    let mut batches = Vec::new();
    if run.job == BILLING_JOB {
        let panel = visit.console.reading.panel;
        let biller = Biller::new(visit.db().clone(), panel, BillingSettings::default());
        let totals = biller.totals_of(run.id).await;
        run.totals = Some(totals.map_err(|error| Problem::database("sum up the run", &error))?);
        batches = read_batches(visit, run.id).await?;
    }
    Ok(RunPage { run, attempts, batches })
}

/// No run has this id: leads to the one whose id begins like it, or else to the newest.
async fn unknown(visit: &Visit, id: &str) -> Result<Problem, Problem> {
    if let Some(similar) = nearest::similar_id(visit, "scheduler_runs", id).await? {
        return Ok(Problem::unknown("run", id, Some((&similar, format!("runs/{similar}")))));
    }
    let newest = visit.runs(&RunFilter { limit: 1, ..RunFilter::default() }).await?.pop();
    let hint = newest.as_ref().map(|run| format!(", the newest run is `{}`", run.id)).unwrap_or_default();
    let message = format!("there is no run `{id}`: the history may be pruned{hint}");
    Ok(Problem::NotFound { message, nearest: newest.map(|run| format!("runs/{}", run.id)) })
}

async fn read_batches(visit: &Visit, run: Uuid) -> Result<Vec<Batch>, Problem> {
    let query = billing_batches::Entity::find()
        .filter(billing_batches::Column::RunId.eq(Id(run)))
        .order_by_asc(billing_batches::Column::Id)
        .limit(BATCHES);
    let batch = |row: billing_batches::Model| Batch {
        id: row.id,
        committed_at: row.created_at.0,
        fencing_token: row.fencing_token,
        instances: row.instances,
        charges: row.charges,
        held: row.held,
        hours: row.hours,
    };
    visit.models("read the batches", query, batch).await
}

impl View for RunPage {
    fn title(&self) -> String {
        format!("Run of {}", self.run.job)
    }

    fn body(&self, visit: &Visit) -> Markup {
        let run = &self.run;
        let mut shown = vec![
            ("status", run_badge(run)),
            ("job", link(visit, format!("jobs/{}", run.job), &run.job)),
            ("scheduled", time(run.scheduled_at)),
            ("started", time(run.started_at)),
            ("ended", time(run.finished_at)),
            ("took", text(milliseconds(run.duration_ms))),
            ("late", text(milliseconds(run.lateness_ms.max(0).unsigned_abs()))),
            ("attempt", text(run.attempt.to_string())),
            ("started by", text(run.cause.as_str())),
            ("daemon", text(&run.daemon_id)),
            ("fencing token", text(run.fencing_token.to_string())),
            ("items", text(grouped(run.items))),
        ];
        if let Some(totals) = &run.totals {
            shown.push(("charged", text(totals.amounts().to_string())));
            shown.push(("hours", text(grouped(totals.hours))));
            shown.push(("held", text(format!("{} instances", grouped(totals.held)))));
        }
        if let Some(reason) = &run.reason {
            shown.push(("reason", text(reason)));
        }
        if let Some(trace) = run.details.as_ref().and_then(|details| details["trace_id"].as_str()) {
            shown.push(("trace", html! { code { (trace) } }));
        }
        if let Some(error) = &run.error {
            shown.push(("error", html! { code { (error) } }));
        }
        let may_replay = visit.may(Right::Operate) && run.status != RunStatus::Done;
        html! {
            @if may_replay {
                div.actions {
                    (form(visit, &Form {
                        path: &format!("jobs/{}/replay", run.job),
                        label: "Replay",
                        hidden: &[("scheduled_at", &instant(run.scheduled_at))],
                        visible: &[],
                        hint: "The scheduled time is run again, unless it is done.",
                    }))
                }
            }
            (facts(&shown))
            @if !self.attempts.is_empty() { h2 { "Other runs of this scheduled time" } (runs(visit, &self.attempts)) }
            @if !self.batches.is_empty() { h2 { "Batches" } (self.batches()) }
            @if let Some(details) = &run.details {
                details { summary { "Details as JSON" } pre { (format!("{details:#}")) } }
            }
            p.hint { "Run " code { (run.id) } }
        }
    }
}

impl RunPage {
    fn batches(&self) -> Markup {
        let figure = |number: i64| text(grouped(number.unsigned_abs()));
        let rows = self.batches.iter().map(|batch| {
            [
                figure(batch.id),
                time(batch.committed_at),
                figure(batch.fencing_token),
                figure(batch.instances.into()),
                figure(batch.charges.into()),
                figure(batch.held.into()),
                figure(batch.hours),
            ]
        });
        let headings = ["#batch", "committed", "#token", "#instances", "#charges", "#held", "#hours"];
        table(headings, rows, "No batch.")
    }
}
