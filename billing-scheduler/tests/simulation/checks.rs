//! The invariants of the simulation, during and at the end.

use std::time::Duration;

use billing_scheduler::{
    JobContext, JobState, Lease, RunCause, RunRecord, RunStatus, Schedule,
    chrono::{DateTime, TimeDelta, Utc},
};

use crate::event_loop::{DEADLINE, JobHistory, Life, World};

impl World {
    /// Checks the state at the end of the phase without faults.
    pub(crate) fn check_at_end(&self) {
        let mut wrong = self.failed_requests();
        let mut state = self.state();
        let due = self.wall(0) - DEADLINE;
        for name in ["each", "latest", "extra"] {
            let Some(job) = state.jobs.get(name) else {
                wrong.push(format!("job `{name}` never ran"));
                continue;
            };
            if job.cursor < due {
                wrong.push(format!("job `{name}` is stuck at {}", job.cursor));
            }
        }
        if let Some(each) = state.jobs.get("each") {
            let mut at = each.first;
            let schedule = Schedule::every(Duration::from_secs(15)).expect("a period");
            while let Ok(Some(next)) = schedule.next_after(at) {
                at = next;
                if at > each.cursor {
                    break;
                }
                if !state.finished.contains(&("each".to_owned(), at)) && !state.operators.explains("each", at)
                {
                    wrong.push(format!("{at} of job `each` is lost"));
                }
            }
        }
        for (daemon, of) in state.daemons.iter().enumerate() {
            let life = Life { daemon, life: of.life };
            // Its clock was ahead, so it ran times that are not due yet.
            if !self.follows_store && of.latest_wall.is_some_and(|latest| latest > due) {
                continue;
            }
            let last = state.finished_by_node.get(&life).and_then(|times| times.iter().max());
            if last.is_none_or(|last| *last < due) {
                wrong.push(format!("job `own` of {daemon} is stuck at {last:?}"));
            }
        }
        if !wrong.is_empty() {
            state.wrong = Some(wrong.join("; "));
        }
    }
}

/// A daemon that follows the store's clock runs nothing earlier than that. Its clock is exact to half of the longest round trip,
/// which includes a pause of the process.
const EARLIEST: TimeDelta = TimeDelta::seconds(40);

impl World {
    /// Checks that a cursor is not in the future by the store's clock.
    fn check_not_early(&self, job: &str, cursor: DateTime<Utc>) {
        if self.follows_store && cursor > self.true_time() + EARLIEST {
            self.wrong(format!("`{job}` is finished up to {cursor}, and it is {}", self.true_time()));
        }
    }

    /// Checks that no two runs of a job trust their leases at the same time.
    pub(crate) fn check_alone(&self, life: Life, ctx: &JobContext) {
        if ctx.occurrence.job == "own" || ctx.stop_requested().is_some() {
            return;
        }
        let others: Vec<_> = self.state().active_runs.clone();
        for (other, context) in others {
            let same = context.occurrence.job == ctx.occurrence.job && context.run_id != ctx.run_id;
            if same && context.stop_requested().is_none() {
                let (a, b) = (life.daemon, other.daemon);
                self.wrong(format!(
                    "{a} and {b} run `{}` at the same time, and both trust their leases",
                    ctx.occurrence.job
                ));
            }
        }
    }
}

fn ends(run: &RunRecord) -> bool {
    run.cause == RunCause::Schedule && matches!(run.status, RunStatus::Done | RunStatus::Dead)
}

/// Checks at each change of the store.
impl World {
    pub(crate) fn check_claim(&self, lease: &Lease) {
        self.check_not_early(&lease.job, lease.state.cursor);
        let mut state = self.state();
        let cursor = lease.state.cursor;
        let first = JobHistory { first: cursor, cursor, fencing_token: 0 };
        let job = state.jobs.entry(lease.job.clone()).or_insert(first);
        let wrong = if lease.fencing_token.0 <= job.fencing_token {
            Some(format!(
                "claim {} of `{}` follows claim {}",
                lease.fencing_token, lease.job, job.fencing_token
            ))
        } else if cursor < job.cursor {
            Some(format!("a claim of `{}` finds the cursor at {}, not {}", lease.job, cursor, job.cursor))
        } else {
            None
        };
        job.fencing_token = lease.fencing_token.0;
        drop(state);
        if let Some(wrong) = wrong {
            self.wrong(wrong);
        }
    }

    pub(crate) fn check_record(&self, run: &RunRecord, next: &JobState, is_reset: bool) {
        self.check_not_early(&run.job, next.cursor);
        let mut state = self.state();
        let Some(job) = state.jobs.get_mut(&run.job) else { return };
        let mut wrong = Vec::new();
        if run.fencing_token.0 != job.fencing_token {
            wrong.push(format!(
                "`{}` is recorded under {}, and {} is the newest",
                run.job, run.fencing_token, job.fencing_token
            ));
        }
        if is_reset {
            job.cursor = next.cursor;
        }
        if next.cursor < job.cursor {
            wrong.push(format!(
                "the cursor of `{}` goes back from {} to {}",
                run.job, job.cursor, next.cursor
            ));
        }
        job.cursor = job.cursor.max(next.cursor);
        if ends(run) && !state.finished.insert((run.job.clone(), run.scheduled_at)) {
            wrong.push(format!("{} of `{}` is finished twice", run.scheduled_at, run.job));
        }
        drop(state);
        for wrong in wrong {
            self.wrong(wrong);
        }
    }

    /// Emulates the unique index of the databases: one finished run of a node per scheduled time.
    pub(crate) fn is_first_of_node(&self, life: Life, run: &RunRecord) -> bool {
        !ends(run) || self.state().finished_by_node.entry(life).or_default().insert(run.scheduled_at)
    }
}
