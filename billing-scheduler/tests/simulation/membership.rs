//! The job `extra`, which operators remove and add again while the daemons run, and the checks: its times without it are not due, and
//! those before are not lost.

use std::sync::{Arc, atomic::Ordering};

use billing_scheduler::{
    Lease, RunCause, RunRecord, RunStatus,
    chrono::{DateTime, Utc},
};

use crate::{
    event_loop::{DAEMONS, Event, Life, World},
    operators::{MAX_SKEW, is_cancelled, is_real},
    random::Random,
};

/// What is known of the job `extra`.
#[derive(Default)]
pub(crate) struct Membership {
    /// The ranges in which no daemon had the job, and the store knew it: from the first claim hint without a schedule until the job
    /// was added to the first daemon.
    gaps: Vec<Gap>,
    /// The ranges in which no daemon had the job.
    absences: Vec<Gap>,
    /// The times that were due and had not run when the job was removed.
    overdue: Vec<DateTime<Utc>>,
}

struct Gap {
    from: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
}

impl World {
    pub(crate) fn plan_membership(&self) {
        let mut random = Random::new(self.seed, "membership");
        let mut at = random.time(5_000, 60_000);
        for _ in 0..random.below(3) {
            let back = at + random.time(6_000, 50_000);
            for daemon in 0..DAEMONS {
                self.plan(at + random.time(0, 5_000), Event::Put(daemon, false));
                self.plan(back + random.time(0, 5_000), Event::Put(daemon, true));
            }
            at = back + random.time(6_000, 40_000);
        }
    }

    /// Adds the job to a daemon, or removes it.
    pub(crate) fn put_extra(self: &Arc<Self>, daemon: usize, is_present: bool) {
        if self.has_extra[daemon].swap(is_present, Ordering::Relaxed) == is_present {
            return;
        }
        let now = self.true_time();
        let due = self.row("extra").and_then(|row| {
            let next_at = row.claim_hint?.next_at?;
            (row.state.cursor < next_at && row.state.retrying.is_none()).then_some(next_at)
        });
        let (life, scheduler) = {
            let mut state = self.state();
            let Membership { gaps, absences, overdue } = &mut state.membership;
            if is_present {
                for gap in gaps.iter_mut().chain(absences) {
                    gap.until = gap.until.or(Some(now));
                }
            } else {
                overdue.extend(due.filter(|at| *at < now - MAX_SKEW));
                if self.has_extra.iter().all(|has| !has.load(Ordering::Relaxed)) {
                    absences.push(Gap { from: now, until: None });
                }
            }
            let daemon_of = &state.daemons[daemon];
            (Life { daemon, life: daemon_of.life }, daemon_of.scheduler.clone())
        };
        self.log(format_args!("{daemon} {} `extra`", if is_present { "adds" } else { "removes" }));
        let Some(scheduler) = scheduler else { return };
        let changed =
            if is_present { scheduler.add(self.new_job(life, "extra")) } else { scheduler.remove("extra") };
        changed.expect("the job is good");
    }

    /// Notes that a daemon leaves the claim hint of a removed job. If no daemon has the job by now, its times are not due from now on.
    pub(crate) fn note_removal(&self, lease: &Lease) {
        let is_hint = lease.job == "extra"
            && lease
                .claim_hint
                .as_ref()
                .is_some_and(|hint| hint.late_at.is_none() && hint.stuck_at.is_none());
        let is_newest = self
            .row("extra")
            .and_then(|row| row.lease)
            .is_some_and(|held| held.fencing_token == lease.fencing_token);
        if is_hint && is_newest && self.has_extra.iter().all(|has| !has.load(Ordering::Relaxed)) {
            let from = self.true_time();
            self.state().membership.gaps.push(Gap { from, until: None });
        }
    }

    /// Returns a message if a time of the job runs at which no daemon had it.
    pub(crate) fn check_membership(&self, run: &RunRecord) -> Option<String> {
        if run.job != "extra" || run.cause != RunCause::Schedule || !is_real(run) {
            return None;
        }
        let at = run.scheduled_at;
        let is_in =
            |gap: &Gap| gap.from + MAX_SKEW < at && gap.until.is_none_or(|until| at < until - MAX_SKEW);
        let is_surprise =
            !self.clocks_jump.load(Ordering::Relaxed) && self.state().membership.gaps.iter().any(is_in);
        is_surprise.then(|| format!("`extra` runs at {at}, when no daemon had the job"))
    }

    /// Returns the times that were due before the job was removed and never ran.
    pub(crate) fn lost_by_removal(&self) -> Vec<String> {
        if self.clocks_jump.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let runs = self.store.runs();
        let covers = |run: &RunRecord, at: DateTime<Utc>| {
            let from = run.range.map_or(run.scheduled_at, |range| range.from);
            run.job == "extra"
                && run.cause == RunCause::Schedule
                && run.status != RunStatus::Rescheduled
                && (from..=run.scheduled_at).contains(&at)
                && (run.status != RunStatus::Interrupted || is_cancelled(run))
        };
        let state = self.state();
        let Membership { absences, overdue, .. } = &state.membership;
        let was_due = |at: &&DateTime<Utc>| {
            let is_in = |gap: &Gap| {
                gap.from - MAX_SKEW < **at && gap.until.is_none_or(|until| **at < until + MAX_SKEW)
            };
            !absences.iter().any(is_in)
        };
        let lost = overdue.iter().filter(was_due).filter(|at| !runs.iter().any(|run| covers(run, **at)));
        lost.map(|at| format!("{at} of job `extra` was due before its removal, and is lost")).collect()
    }
}
