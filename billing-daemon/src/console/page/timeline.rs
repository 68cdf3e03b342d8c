//! How punctual a job is: when its runs were scheduled, when they took place, and when it was paused.

use billing_entities::scheduler_pauses;
use billing_scheduler::{RunFilter, RunStatus};
use chrono::TimeDelta;
use sea_orm::{
    ColumnTrait, DbBackend, EntityTrait, QueryFilter, QueryOrder, QueryResult, QuerySelect, Value,
};
use serde::Serializer;
use uuid::Uuid;

use super::prelude::*;
use crate::status::RunView;

/// How many runs are shown, unless the query has another number.
pub(super) const RUNS: u32 = 60;
const MAX_RUNS: u32 = 500;
/// How many pauses are shown, the newest.
const PAUSES: u64 = 50;

#[derive(Serialize)]
pub(in crate::console) struct Timeline {
    pub(in crate::console) job: String,
    /// The scheduled times, the oldest first.
    pub(in crate::console) planned: Vec<DateTime<Utc>>,
    pub(in crate::console) pauses: Vec<PauseSpan>,
    /// The oldest first.
    pub(in crate::console) runs: Vec<TimelineRun>,
    /// The lateness of those of the runs that took place.
    lateness: Lateness,
    /// The lateness of the runs of the last 24 hours.
    lateness_of_day: Lateness,
}

#[derive(Serialize)]
pub(in crate::console) struct PauseSpan {
    pub(in crate::console) from: DateTime<Utc>,
    pub(in crate::console) until: Option<DateTime<Utc>>,
    pub(in crate::console) by: String,
    reason: Option<String>,
}

#[derive(Serialize)]
pub(in crate::console) struct TimelineRun {
    id: Uuid,
    pub(in crate::console) scheduled_at: DateTime<Utc>,
    pub(in crate::console) started_at: DateTime<Utc>,
    pub(in crate::console) finished_at: DateTime<Utc>,
    #[serde(serialize_with = "as_word")]
    pub(in crate::console) status: RunStatus,
    pub(in crate::console) lateness_ms: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn as_word<S: Serializer>(status: &RunStatus, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(status.as_str())
}

/// Percentiles of the lateness; 0 without a run.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Lateness {
    runs: u64,
    p50_ms: i64,
    p90_ms: i64,
    p99_ms: i64,
    max_ms: i64,
}

impl Lateness {
    fn of(mut values: Vec<i64>) -> Self {
        values.sort_unstable();
        // The nearest rank: the smallest value that so many of all do not exceed.
        let rank = |percent: usize| {
            let rank = (values.len() * percent).div_ceil(100).max(1);
            values.get(rank - 1).copied().unwrap_or_default()
        };
        Self {
            runs: values.len() as u64,
            p50_ms: rank(50),
            p90_ms: rank(90),
            p99_ms: rank(99),
            max_ms: rank(100),
        }
    }

    /// The same of the runs of the last 24 hours, which may be more than a page can read.
    async fn of_day(visit: &Visit, job: &str) -> Result<Self, Problem> {
        let begin = visit.status.observed_at - TimeDelta::hours(24);
        let (late, begin): (_, Value) = match visit.db().get_database_backend() {
            DbBackend::Sqlite => ("(started_at - scheduled_at) / 1000", begin.timestamp_micros().into()),
            _ => {
                ("CAST(floor(extract(epoch FROM started_at - scheduled_at) * 1000) AS bigint)", begin.into())
            }
        };
        let ran = RunStatus::ALL.into_iter().filter(|status| status.has_run());
        let ran = ran.map(|status| format!("'{}'", status.as_str())).collect::<Vec<_>>().join(", ");
        let rank = |percent: u32| {
            format!("coalesce(min(CASE WHEN place * 100 >= runs * {percent} THEN ms END), 0) AS p{percent}")
        };
        let sql = format!(
            "SELECT {}, {}, {}, {}, count(*) AS runs
               FROM (SELECT ms, row_number() OVER (ORDER BY ms) AS place, count(*) OVER () AS runs
                       FROM (SELECT CASE WHEN started_at > scheduled_at THEN {late} ELSE 0 END AS ms FROM scheduler_runs
                              WHERE job = $1 AND started_at > $2 AND status IN ({ran})) AS late) AS ranked",
            rank(50),
            rank(90),
            rank(99),
            rank(100)
        );
        let lateness = |row: &QueryResult| {
            Ok(Self {
                runs: row.try_get::<i64>("", "runs")?.unsigned_abs(),
                p50_ms: row.try_get("", "p50")?,
                p90_ms: row.try_get("", "p90")?,
                p99_ms: row.try_get("", "p99")?,
                max_ms: row.try_get("", "p100")?,
            })
        };
        let found = visit.rows("read how late the job was", &sql, [job.into(), begin], lateness).await?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    fn row(&self, label: &str) -> [Markup; 6] {
        let shown = |ms: i64| text(milliseconds(ms.max(0).unsigned_abs()));
        [
            text(label),
            text(grouped(self.runs)),
            shown(self.p50_ms),
            shown(self.p90_ms),
            shown(self.p99_ms),
            shown(self.max_ms),
        ]
    }
}

impl Timeline {
    /// The timeline of these runs, the newest first.
    pub(super) async fn of(visit: &Visit, job: &str, runs: &[RunView]) -> Result<Self, Problem> {
        let mut planned: Vec<_> = runs.iter().map(|run| run.scheduled_at).collect();
        planned.sort_unstable();
        planned.dedup();
        let begin = planned.first().copied().unwrap_or_default();
        let lateness = runs.iter().filter(|run| run.status.has_run()).map(|run| run.lateness_ms);
        Ok(Self {
            job: job.to_owned(),
            lateness: Lateness::of(lateness.collect()),
            lateness_of_day: Lateness::of_day(visit, job).await?,
            pauses: pauses(visit, job, begin).await?,
            planned,
            runs: runs
                .iter()
                .rev()
                .map(|run| TimelineRun {
                    id: run.id,
                    scheduled_at: run.scheduled_at,
                    started_at: run.started_at,
                    finished_at: run.finished_at,
                    status: run.status,
                    lateness_ms: run.lateness_ms,
                })
                .collect(),
        })
    }

    /// How late the runs were.
    pub(super) fn lateness(&self) -> Markup {
        let headings = ["lateness of", "#runs", "#p50", "#p90", "#p99", "#max"];
        let shown = format!("the last {} runs", self.runs.len());
        table(headings, [self.lateness.row(&shown), self.lateness_of_day.row("the last 24 hours")], "")
    }
}

async fn pauses(visit: &Visit, job: &str, begin: DateTime<Utc>) -> Result<Vec<PauseSpan>, Problem> {
    let query = scheduler_pauses::Entity::find()
        .filter(scheduler_pauses::Column::Job.eq(job))
        .order_by_desc(scheduler_pauses::Column::PausedAt)
        .limit(PAUSES);
    let span = |row: scheduler_pauses::Model| PauseSpan {
        from: row.paused_at.0,
        until: row.resumed_at.map(|at| at.0),
        by: row.paused_by,
        reason: row.reason,
    };
    let mut spans = visit.models("read the pauses", query, span).await?;
    spans.retain(|pause| pause.until.is_none_or(|until| until > begin));
    Ok(spans)
}

/// Reads the runs of a job, the newest first: as many as the query has.
pub(super) async fn read_newest_runs(visit: &Visit, job: &str) -> Result<Vec<RunView>, Problem> {
    let limit = visit.parsed("runs")?.unwrap_or(RUNS).clamp(1, MAX_RUNS);
    let filter = RunFilter { job: Some(job.to_owned()), limit, ..RunFilter::default() };
    visit.runs(&filter).await
}

pub(in crate::console) async fn read(visit: &Visit) -> Result<Timeline, Problem> {
    let job = super::job::known(visit)?.job.clone();
    let runs = read_newest_runs(visit, &job).await?;
    Timeline::of(visit, &job, &runs).await
}

impl View for Timeline {
    fn title(&self) -> String {
        format!("Timeline of {}", self.job)
    }

    fn body(&self, visit: &Visit) -> Markup {
        let rows = self.runs.iter().rev().map(|run| {
            [
                run_link(visit, run.id, run.scheduled_at),
                time(run.started_at),
                time(run.finished_at),
                text(milliseconds(run.lateness_ms.max(0).unsigned_abs())),
                badge(Tone::of_run(run.status), run.status.as_str()),
            ]
        });
        html! {
            p { (link(visit, format!("jobs/{}", self.job), format!("Job {}", self.job))) }
            (chart::timeline(self))
            (self.lateness())
            h2 { "Runs" }
            (table(["scheduled", "started", "ended", "#late", "status"], rows, "No runs yet."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let lateness =
            |runs, p50_ms, p90_ms, p99_ms, max_ms| Lateness { runs, p50_ms, p90_ms, p99_ms, max_ms };
        assert_eq!(Lateness::of(Vec::new()), lateness(0, 0, 0, 0, 0));
        assert_eq!(Lateness::of(vec![7]), lateness(1, 7, 7, 7, 7));
        assert_eq!(Lateness::of((1..=100).rev().collect()), lateness(100, 50, 90, 99, 100));
        assert_eq!(Lateness::of((1..=10).collect()), lateness(10, 5, 9, 10, 10));
    }
}
