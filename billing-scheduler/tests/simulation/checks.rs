//! What must never happen, and what must be so in the end.

use std::time::Duration;

use billing_scheduler::{JobContext, JobState, Lease, RunCause, RunRecord, RunStatus, Schedule};

use crate::event_loop::{LATEST, Life, Witnessed, World};

impl World {
    /// What must be so when everything has been well for a while.
    pub(crate) fn look_back(&self) {
        let mut wrong = self.what_people_miss();
        let mut plot = self.plot();
        let due = self.wall(0) - LATEST;
        for name in ["each", "latest"] {
            let Some(job) = plot.jobs.get(name) else {
                wrong.push(format!("job `{name}` never ran"));
                continue;
            };
            if job.cursor < due {
                wrong.push(format!("job `{name}` is stuck at {}", job.cursor));
            }
        }
        if let Some(each) = plot.jobs.get("each") {
            let mut at = each.first;
            let schedule = Schedule::every(Duration::from_secs(15)).expect("a period");
            while let Ok(Some(next)) = schedule.next_after(at) {
                at = next;
                if at > each.cursor {
                    break;
                }
                if !plot.finished.contains(&("each".to_owned(), at)) && !plot.people.know_of("each", at) {
                    wrong.push(format!("{at} of job `each` is lost"));
                }
            }
        }
        for (daemon, of) in plot.daemons.iter().enumerate() {
            let life = Life { daemon, life: of.life };
            // A clock that was ahead has made it run what is not due yet.
            if of.latest_wall.is_some_and(|latest| latest > due) {
                continue;
            }
            let last = plot.finished_by_node.get(&life).and_then(|times| times.iter().max());
            if last.is_none_or(|last| *last < due) {
                wrong.push(format!("job `own` of {daemon} is stuck at {last:?}"));
            }
        }
        if !wrong.is_empty() {
            plot.wrong = Some(wrong.join("; "));
        }
    }
}

impl World {
    /// Two runs of a job that both trust their leases must not be under way at once.
    pub(crate) fn check_alone(&self, life: Life, ctx: &JobContext) {
        if ctx.occurrence.job == "own" || ctx.stop_requested().is_some() {
            return;
        }
        let others: Vec<_> = self.plot().runs_under_way.clone();
        for (other, context) in others {
            let same = context.occurrence.job == ctx.occurrence.job && context.run_id != ctx.run_id;
            if same && context.stop_requested().is_none() {
                let (a, b) = (life.daemon, other.daemon);
                self.wrong(format!(
                    "{a} and {b} run `{}` at once, and both trust their leases",
                    ctx.occurrence.job
                ));
            }
        }
    }
}

fn ends(run: &RunRecord) -> bool {
    run.cause == RunCause::Schedule && matches!(run.status, RunStatus::Done | RunStatus::Dead)
}

/// What is checked at each change of the store.
impl World {
    pub(crate) fn witness_claim(&self, lease: &Lease) {
        let mut plot = self.plot();
        let state = &lease.state;
        let first = Witnessed { first: state.cursor, cursor: state.cursor, fencing_token: 0 };
        let job = plot.jobs.entry(lease.job.clone()).or_insert(first);
        let wrong = if lease.fencing_token.0 <= job.fencing_token {
            Some(format!(
                "claim {} of `{}` follows claim {}",
                lease.fencing_token, lease.job, job.fencing_token
            ))
        } else if state.cursor < job.cursor {
            Some(format!(
                "a claim of `{}` finds the cursor at {}, not {}",
                lease.job, state.cursor, job.cursor
            ))
        } else {
            None
        };
        job.fencing_token = lease.fencing_token.0;
        drop(plot);
        if let Some(wrong) = wrong {
            self.wrong(wrong);
        }
    }

    pub(crate) fn witness_record(&self, run: &RunRecord, next: &JobState, is_reset: bool) {
        let mut plot = self.plot();
        let Some(job) = plot.jobs.get_mut(&run.job) else { return };
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
        if ends(run) && !plot.finished.insert((run.job.clone(), run.scheduled_at)) {
            wrong.push(format!("{} of `{}` is finished twice", run.scheduled_at, run.job));
        }
        drop(plot);
        for wrong in wrong {
            self.wrong(wrong);
        }
    }

    /// The databases' unique index: one finished run of each node at one scheduled time.
    pub(crate) fn first_of_its_node(&self, life: Life, run: &RunRecord) -> bool {
        !ends(run) || self.plot().finished_by_node.entry(life).or_default().insert(run.scheduled_at)
    }
}
