//! Operators who pause, run, reset and cancel jobs and edit schedules, and the checks of their requests.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use billing_scheduler::{
    ControlAction, ControlReceipt, ControlRequest, FencingToken, JobContext, JobRow, JobState, Lease,
    RunCause, RunRecord, RunStatus, Schedule, Store as _,
    chrono::{DateTime, SubsecRound as _, TimeDelta, Utc},
};
use uuid::Uuid;

use crate::{
    event_loop::{DAEMONS, DEADLINE, Event, FAULT_PHASE, Life, PERIOD_S, QUIET_PHASE, World, beginning},
    random::Random,
    store::ready,
};

/// The jobs that operators control.
const JOBS: [&str; 3] = ["each", "latest", "own"];
/// The maximum duration of a pause.
const LONGEST_PAUSE_MS: u64 = 60_000;
/// The maximum difference of wall clocks that are not set.
pub(crate) const MAX_SKEW: TimeDelta = TimeDelta::seconds(5);
/// By this time, every request of the first phase has arrived.
const SETTLED: Duration = Duration::from_secs(FAULT_PHASE.as_secs() + 20);
/// Without faults, a cancelled run is requested to stop within this time.
const STOP_WITHIN: Duration = Duration::from_millis(1_500);

/// The requests of operators and the observed effects.
#[derive(Default)]
pub(crate) struct Operators {
    sent: u64,
    /// The requested runs that were not withdrawn.
    requested: HashMap<Uuid, &'static str>,
    /// The finished run of each request.
    answers: HashMap<Uuid, Uuid>,
    answered: HashSet<Uuid>,
    pauses: Vec<Paused>,
    /// The pauses of the job at the time of each claim.
    known: HashMap<(String, FencingToken), Vec<Paused>>,
    /// The ranges of scheduled times that were not run because the job was paused.
    not_run: Vec<(String, DateTime<Utc>, DateTime<Utc>)>,
    cancels: Vec<Cancel>,
    /// The accepted requests to reset.
    resets: HashSet<Uuid>,
    /// The accepted requests to reset that were not withdrawn.
    unanswered_resets: HashMap<Uuid, &'static str>,
    /// The run of each occurrence that was cancelled.
    cancelled: HashMap<(String, DateTime<Utc>), Uuid>,
    /// The time at which each period of `latest` was first configured.
    configured: HashMap<u64, DateTime<Utc>>,
    /// The times of `latest` that were due and had not run when the schedule was edited.
    overdue: Vec<DateTime<Utc>>,
}

#[derive(Clone)]
struct Paused {
    job: &'static str,
    since: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
}

/// A request to cancel one claim.
struct Cancel {
    job: &'static str,
    fencing_token: FencingToken,
    at: Duration,
    /// The first run under this claim that ended after the request.
    meant: Option<Uuid>,
}

impl World {
    pub(crate) fn plan_requests(&self) {
        let mut random = Random::new(self.seed, "operators");
        for _ in 0..random.below(6) {
            let at = random.time(5_000, 170_000);
            let job = JOBS[usize::try_from(random.below(3)).expect("small")];
            match random.below(6) {
                0 | 1 => self.plan(at, Event::Request(job, ControlAction::RunNow)),
                2 => self.plan(at, Event::Request(job, cancel())),
                3 | 4 => {
                    self.plan(at, Event::Request(job, ControlAction::Pause));
                    self.plan(
                        at + random.time(1_000, LONGEST_PAUSE_MS),
                        Event::Request(job, ControlAction::Resume),
                    );
                }
                _ => {
                    let period_s = [20, 25, PERIOD_S, 45][usize::try_from(random.below(4)).expect("small")];
                    for daemon in 0..DAEMONS {
                        self.plan(at + random.time(0, 5_000), Event::Edit(daemon, period_s));
                    }
                }
            }
        }
    }

    /// Resets free a job whose cursor is ahead. That needs a clock that was ahead, so there are many requests.
    pub(crate) fn plan_resets(&self) {
        let mut random = Random::new(self.seed, "resets");
        for _ in 0..random.below(12) {
            let job = JOBS[usize::try_from(random.below(3)).expect("small")];
            self.plan(random.time(5_000, 200_000), Event::Request(job, ControlAction::Reset));
        }
    }

    /// Sends a request of an operator, without faults.
    pub(crate) fn send(&self, job: &'static str, action: ControlAction) {
        let open = ready(self.store.poll(None)).ok().and_then(|poll| poll.changed).unwrap_or_default();
        let held = self.row(job).and_then(|row| row.lease);
        let id = {
            let mut state = self.state();
            state.operators.sent += 1;
            Uuid::from_u128(state.operators.sent.into())
        };
        let at = self.true_time().trunc_subsecs(6);
        let request =
            ControlRequest { id, job: job.to_owned(), action, by: "ada".to_owned(), reason: None, at };
        let receipt = ready(self.store.request(&request));
        self.log(format_args!("ada: {} `{job}`: {receipt:?}", action.as_str()));
        if !matches!(receipt, Ok(ControlReceipt::Accepted)) {
            return;
        }
        let operators = &mut self.state().operators;
        match action {
            ControlAction::RunNow => drop(operators.requested.insert(id, job)),
            ControlAction::Pause => operators.pauses.push(Paused { job, since: at, until: None }),
            ControlAction::Resume => {
                let open =
                    operators.pauses.iter_mut().find(|pause| pause.job == job && pause.until.is_none());
                open.expect("the store accepted the request, so the job was paused").until = Some(at);
            }
            ControlAction::Cancel { .. } => {
                // Requests that have not started are withdrawn.
                for request in open.requests.iter().filter(|request| request.job == job) {
                    operators.requested.remove(&request.id);
                    operators.unanswered_resets.remove(&request.id);
                }
                let claim = held.map(|held| held.fencing_token);
                operators.cancels.extend(claim.map(|fencing_token| Cancel {
                    job,
                    fencing_token,
                    at: self.now(),
                    meant: None,
                }));
            }
            ControlAction::Reset => {
                operators.resets.insert(id);
                operators.unanswered_resets.insert(id, job);
            }
            ControlAction::Replay { .. } => {}
        }
    }

    /// Schedules a request to cancel a run.
    pub(crate) fn plan_to_cancel(&self, ctx: &JobContext, after: Duration) {
        if let Some(job) = JOBS.into_iter().find(|job| *job == ctx.occurrence.job) {
            self.plan(after, Event::Request(job, cancel()));
        }
    }

    /// A daemon reads another configuration.
    pub(crate) fn edit(self: &Arc<Self>, daemon: usize, period_s: u64) {
        let before = self.period_s[daemon].swap(period_s, Ordering::Relaxed);
        let now = self.true_time();
        let due_before = self.row("latest").map_or_else(Vec::new, |row| {
            let schedule = Schedule::every(Duration::from_secs(before)).expect("a period");
            // A schedule that has just replaced another one is not in force since the cursor.
            let is_known = row
                .claim_hint
                .is_some_and(|hint| hint.schedule == schedule.to_string() && hint.replaced.is_empty());
            let after = |at: &DateTime<Utc>| schedule.next_after(*at).ok().flatten();
            let times = std::iter::successors(after(&row.state.cursor), after);
            times.take_while(|at| is_known && *at < now - MAX_SKEW).collect()
        });
        let (life, scheduler) = {
            let mut state = self.state();
            state.operators.configured.entry(period_s).or_insert(now);
            if before != period_s {
                state.operators.overdue.extend(due_before);
            }
            let daemon_of = &state.daemons[daemon];
            (Life { daemon, life: daemon_of.life }, daemon_of.scheduler.clone())
        };
        self.log(format_args!("{daemon} is configured to run `latest` every {period_s} s"));
        let Some(scheduler) = scheduler else { return };
        if self.now().as_millis().is_multiple_of(2) {
            scheduler.update(self.new_job(life, "latest")).expect("the job is good");
        } else {
            scheduler
                .reload(&self.registry(life), self.specs(daemon), |_| false)
                .expect("the configuration is good");
        }
    }

    pub(crate) fn state_of(&self, job: &str) -> Option<JobState> {
        self.row(job).map(|row| row.state)
    }

    pub(crate) fn row(&self, job: &str) -> Option<JobRow> {
        ready(self.store.jobs()).ok()?.into_iter().find(|row| row.job == job)
    }

    pub(crate) fn true_time(&self) -> DateTime<Utc> {
        beginning() + TimeDelta::from_std(self.now()).expect("minutes")
    }
}

/// The store sets the fencing token.
fn cancel() -> ControlAction {
    ControlAction::Cancel { fencing_token: FencingToken(0) }
}

/// Checks during the simulation.
impl World {
    /// Records the pauses at the time of a claim: the lease must contain each of them.
    pub(crate) fn record_pauses(&self, lease: &Lease) {
        let operators = &mut self.state().operators;
        let pauses = operators.pauses.iter().filter(|pause| pause.job == lease.job).cloned().collect();
        operators.known.insert((lease.job.clone(), lease.fencing_token), pauses);
    }

    /// Checks that a cancelled run is requested to stop.
    pub(crate) fn check_cancelled_run_stops(&self, ctx: &JobContext, began: Duration) {
        let now = self.now();
        let is_ignored = self.state().operators.cancels.iter().any(|cancel| {
            cancel.job == ctx.occurrence.job
                && cancel.fencing_token == ctx.fencing_token
                && cancel.at > SETTLED.max(began)
                && cancel.at + STOP_WITHIN < now
        });
        if is_ignored && ctx.stop_requested().is_none() {
            self.wrong(format!("the run of {} was cancelled, and is not requested to stop", ctx.occurrence));
        }
    }

    pub(crate) fn check_request_effects(&self, run: &RunRecord, before: Option<&JobState>, next: &JobState) {
        let mut state = self.state();
        let wrong = if run.cause == RunCause::Schedule {
            state.operators.check_scheduled(run, self.clocks_jump.load(Ordering::Relaxed))
        } else {
            state.operators.check_requested(run, before, next)
        };
        drop(state);
        let settled = self.check_settled(run);
        for wrong in wrong.into_iter().chain(settled).chain(self.check_membership(run)) {
            self.wrong(wrong);
        }
    }

    fn check_settled(&self, run: &RunRecord) -> Option<String> {
        let period_s = self.period_s[0].load(Ordering::Relaxed);
        let is_checked = run.job == "latest" && is_real(run) && run.cause == RunCause::Schedule;
        (is_checked
            && self.now() > FAULT_PHASE + QUIET_PHASE / 2
            && !is_due_every(period_s, run.scheduled_at))
        .then(|| {
            format!("`latest` runs at {}, although its period is {period_s} s by then", run.scheduled_at)
        })
    }

    /// Returns the failed checks at the end of the simulation.
    pub(crate) fn failed_requests(&self) -> Vec<String> {
        let mut missed = self.lost_by_removal();
        let open = ready(self.store.poll(None)).ok().and_then(|poll| poll.changed).unwrap_or_default();
        let is_over = |at: DateTime<Utc>| at < self.true_time() - DEADLINE;
        let runs = self.store.runs();
        let state = self.state();
        let operators = &state.operators;
        for (id, job) in operators.requested.iter().filter(|(id, _)| !operators.answered.contains(id)) {
            missed.push(format!("request {} to run `{job}` was never answered", id.as_u128()));
        }
        for (id, job) in &operators.unanswered_resets {
            missed.push(format!("request {} to reset `{job}` was never answered", id.as_u128()));
        }
        for request in open.requests.iter().filter(|request| is_over(request.at)) {
            // The run to cancel may have ended before.
            if !matches!(request.action, ControlAction::Cancel { .. }) {
                missed.push(format!("request {} of `{}` is still open", request.id.as_u128(), request.job));
            }
        }
        if !self.clocks_jump.load(Ordering::Relaxed) {
            for at in &operators.overdue {
                let covers = |run: &RunRecord| {
                    let from = run.range.map_or(run.scheduled_at, |range| range.from);
                    run.job == "latest"
                        && run.cause == RunCause::Schedule
                        && run.status != RunStatus::Rescheduled
                        && (from..=run.scheduled_at).contains(at)
                        && (run.status != RunStatus::Interrupted || is_cancelled(run))
                };
                if !runs.iter().any(covers) {
                    missed.push(format!("{at} of job `latest` was due before an edit, and is lost"));
                }
            }
        }
        missed
    }
}

impl Operators {
    /// Whether an operator paused or cancelled the occurrence.
    pub(crate) fn explains(&self, job: &str, at: DateTime<Utc>) -> bool {
        self.cancelled.contains_key(&(job.to_owned(), at))
            || self.not_run.iter().any(|(of, from, until)| of == job && *from <= at && at <= *until)
    }

    fn check_scheduled(&mut self, run: &RunRecord, clocks_jump: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        let (job, at) = (&run.job, run.scheduled_at);
        if run.status == RunStatus::Paused {
            let from = run.range.map_or(at, |range| range.from);
            let is_in = |pause: &Paused| {
                pause.job == job && pause.since <= from && pause.until.is_some_and(|until| at < until)
            };
            if !self.pauses.iter().any(is_in) {
                wrong.push(format!("`{job}` was not paused from {from} to {at}"));
            }
            self.not_run.push((job.clone(), from, at));
        }
        if !is_real(run) {
            return wrong;
        }
        for pause in self.known.get(&(job.clone(), run.fencing_token)).into_iter().flatten() {
            let is_paused = match pause.until {
                None => true,
                // An occurrence that started before the pause is retried.
                Some(until) => run.attempt == 1 && pause.since <= at && at < until,
            };
            if is_paused {
                wrong.push(format!("`{job}` runs at {at}, although it was paused at {}", pause.since));
            }
        }
        // The same row may be delivered twice.
        if self.cancelled.get(&(job.clone(), at)).is_some_and(|cancelled| *cancelled != run.id) {
            wrong.push(format!("{at} of `{job}` was cancelled, and runs again"));
        }
        let control_state = self
            .cancels
            .iter_mut()
            .filter(|cancel| cancel.job == job && cancel.fencing_token == run.fencing_token);
        let is_meant =
            control_state.fold(false, |is, cancel| is | (*cancel.meant.get_or_insert(run.id) == run.id));
        if is_cancelled(run) {
            if !is_meant {
                wrong.push(format!("{at} of `{job}` is cancelled without a request"));
            }
            self.cancelled.insert((job.clone(), at), run.id);
        }
        // A time of a schedule before the schedule was configured, by a clock that is nearly right.
        let is_configured = |(period_s, since): (&u64, &DateTime<Utc>)| {
            is_due_every(*period_s, at) && (*period_s == PERIOD_S || *since < at + MAX_SKEW)
        };
        if job == "latest"
            && !clocks_jump
            && !self.configured.iter().any(is_configured)
            && !is_due_every(PERIOD_S, at)
        {
            wrong.push(format!("`latest` runs at {at}, which no configured schedule contains"));
        }
        wrong
    }

    fn check_requested(
        &mut self,
        run: &RunRecord,
        before: Option<&JobState>,
        next: &JobState,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let job = &run.job;
        if self.is_reset(run) {
            return self.check_reset(run, before, next);
        }
        if before.is_some_and(|before| before != next) {
            wrong.push(format!("a requested run of `{job}` changes the state of its schedule"));
        }
        if run.status == RunStatus::Retrying {
            wrong.push(format!("a requested run of `{job}` is retried"));
        }
        let control_state = self
            .cancels
            .iter_mut()
            .filter(|cancel| cancel.job == job && cancel.fencing_token == run.fencing_token);
        for cancel in control_state {
            cancel.meant.get_or_insert(run.id);
        }
        if let Some(id) = run.request_id {
            self.answered.insert(id);
            if run.status == RunStatus::Interrupted && !is_cancelled(run) {
                wrong.push(format!("a requested run of `{job}` was interrupted and will not be repeated"));
            }
            let ends = matches!(run.status, RunStatus::Done | RunStatus::Dead);
            if ends && *self.answers.entry(id).or_insert(run.id) != run.id {
                wrong.push(format!("a requested run of `{job}` ended twice"));
            }
        }
        wrong
    }
}

impl Operators {
    /// Whether the row is that of a reset: the schedule continues from the present on request of an operator.
    pub(crate) fn is_reset(&self, run: &RunRecord) -> bool {
        run.cause == RunCause::Manual && run.request_id.is_some_and(|id| self.resets.contains(&id))
    }

    /// Checks a reset, which only moves the schedule back. Scheduled times may then repeat: those that ran are skipped, and those that
    /// were cancelled may run.
    fn check_reset(&mut self, run: &RunRecord, before: Option<&JobState>, next: &JobState) -> Vec<String> {
        let mut wrong = Vec::new();
        let job = &run.job;
        if run.status != RunStatus::Skipped || next.retrying.is_some() {
            wrong.push(format!("a reset of `{job}` is {:?}, and leaves {next:?}", run.status));
        }
        if before.is_some_and(|before| before.cursor < next.cursor) {
            wrong.push(format!("a reset of `{job}` moves its schedule on to {}", next.cursor));
        }
        self.cancelled.retain(|(of, at), _| of != job || *at <= next.cursor);
        self.unanswered_resets.retain(|id, _| Some(*id) != run.request_id);
        wrong
    }
}

/// Whether the row is that of a run.
pub(crate) fn is_real(run: &RunRecord) -> bool {
    use RunStatus::{Dead, Done, Interrupted, Retrying};
    matches!(run.status, Done | Dead | Retrying | Interrupted)
}

pub(crate) fn is_cancelled(run: &RunRecord) -> bool {
    run.status == RunStatus::Interrupted
        && run.reason.as_ref().is_some_and(|reason| reason.contains("cancelled by"))
}

fn is_due_every(period_s: u64, at: DateTime<Utc>) -> bool {
    let schedule = Schedule::every(Duration::from_secs(period_s)).expect("a period");
    let before = at - Duration::from_micros(1);
    schedule.next_after(before).ok().flatten() == Some(at)
}
