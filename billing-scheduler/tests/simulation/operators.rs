//! People who pause, trigger and cancel jobs, and edit their schedules; and what they may rely on.

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
    event_loop::{CALM, DAEMONS, Event, LATEST, Life, PERIOD_S, STORM, World, beginning},
    random::Dice,
    store::at_once,
};

/// The jobs that people have something to do with.
const JOBS: [&str; 3] = ["each", "latest", "own"];
/// How long a job stays paused at most.
const LONGEST_PAUSE_MS: u64 = 60_000;
/// Clocks that nobody sets are at most so far apart.
const APART: TimeDelta = TimeDelta::seconds(5);
/// As long after the storm, what was under way then has arrived.
const SETTLED: Duration = Duration::from_secs(STORM.as_secs() + 20);
/// A good line given, a run is told so soon that it is cancelled.
const TOLD: Duration = Duration::from_millis(1_500);

/// What people did, and what came of it.
#[derive(Default)]
pub(crate) struct People {
    asked: u64,
    /// The runs that were asked for and not withdrawn.
    triggered: HashMap<Uuid, &'static str>,
    /// The run that ended for each request.
    answers: HashMap<Uuid, Uuid>,
    answered: HashSet<Uuid>,
    pauses: Vec<Paused>,
    /// The pauses of its job that were known when a claim was made.
    known: HashMap<(String, FencingToken), Vec<Paused>>,
    /// Scheduled times that were passed over because the job was paused.
    passed: Vec<(String, DateTime<Utc>, DateTime<Utc>)>,
    cancels: Vec<Cancel>,
    /// The requests to reset that were accepted.
    resets: HashSet<Uuid>,
    /// Of these, the ones that were not withdrawn.
    unanswered_resets: HashMap<Uuid, &'static str>,
    /// The run of each occurrence that was cancelled.
    cancelled: HashMap<(String, DateTime<Utc>), Uuid>,
    /// When each period of `latest` was first wanted.
    wanted: HashMap<u64, DateTime<Utc>>,
    /// The times of `latest` that were due when its schedule was edited, and had not run.
    owed: Vec<DateTime<Utc>>,
}

#[derive(Clone)]
struct Paused {
    job: &'static str,
    since: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
}

/// The wish to cancel one claim.
struct Cancel {
    job: &'static str,
    fencing_token: FencingToken,
    at: Duration,
    /// The first run under that claim that ended since.
    meant: Option<Uuid>,
}

impl World {
    pub(crate) fn plan_what_people_do(&self) {
        let mut dice = Dice::new(self.seed, "people");
        for _ in 0..dice.roll(6) {
            let at = dice.time(5_000, 170_000);
            let job = JOBS[usize::try_from(dice.roll(3)).expect("small")];
            match dice.roll(6) {
                0 | 1 => self.plan(at, Event::Request(job, ControlAction::RunNow)),
                2 => self.plan(at, Event::Request(job, cancel())),
                3 | 4 => {
                    self.plan(at, Event::Request(job, ControlAction::Pause));
                    self.plan(
                        at + dice.time(1_000, LONGEST_PAUSE_MS),
                        Event::Request(job, ControlAction::Resume),
                    );
                }
                _ => {
                    let period_s = [20, 25, PERIOD_S, 45][usize::try_from(dice.roll(4)).expect("small")];
                    for daemon in 0..DAEMONS {
                        self.plan(at + dice.time(0, 5_000), Event::Edit(daemon, period_s));
                    }
                }
            }
        }
    }

    /// Resets free a job whose cursor is ahead. That needs a clock that was ahead, so there are many requests.
    pub(crate) fn plan_resets(&self) {
        let mut dice = Dice::new(self.seed, "resets");
        for _ in 0..dice.roll(12) {
            let job = JOBS[usize::try_from(dice.roll(3)).expect("small")];
            self.plan(dice.time(5_000, 200_000), Event::Request(job, ControlAction::Reset));
        }
    }

    /// Somebody asks for something, over a line that is good.
    pub(crate) fn ask(&self, job: &'static str, action: ControlAction) {
        let open = at_once(self.store.control_state(None)).ok().flatten().unwrap_or_default();
        let held = self.row(job).and_then(|row| row.lease);
        let id = {
            let mut plot = self.plot();
            plot.people.asked += 1;
            Uuid::from_u128(plot.people.asked.into())
        };
        let at = self.true_time().trunc_subsecs(6);
        let request =
            ControlRequest { id, job: job.to_owned(), action, by: "ada".to_owned(), reason: None, at };
        let receipt = at_once(self.store.request(&request));
        self.log(format_args!("ada: {} `{job}`: {receipt:?}", action.as_str()));
        if !matches!(receipt, Ok(ControlReceipt::Accepted)) {
            return;
        }
        let people = &mut self.plot().people;
        match action {
            ControlAction::RunNow => drop(people.triggered.insert(id, job)),
            ControlAction::Pause => people.pauses.push(Paused { job, since: at, until: None }),
            ControlAction::Resume => {
                let open = people.pauses.iter_mut().find(|pause| pause.job == job && pause.until.is_none());
                open.expect("the store says that it was paused").until = Some(at);
            }
            ControlAction::Cancel { .. } => {
                // What had not begun is withdrawn, and what had may end.
                for request in open.requests.iter().filter(|request| request.job == job) {
                    people.triggered.remove(&request.id);
                    people.unanswered_resets.remove(&request.id);
                }
                let claim = held.map(|held| held.fencing_token);
                people.cancels.extend(claim.map(|fencing_token| Cancel {
                    job,
                    fencing_token,
                    at: self.now(),
                    meant: None,
                }));
            }
            ControlAction::Reset => {
                people.resets.insert(id);
                people.unanswered_resets.insert(id, job);
            }
            ControlAction::Replay { .. } => {}
        }
    }

    /// Somebody who sees a job run wants it to stop.
    pub(crate) fn plan_to_cancel(&self, ctx: &JobContext, after: Duration) {
        if let Some(job) = JOBS.into_iter().find(|job| *job == ctx.occurrence.job) {
            self.plan(after, Event::Request(job, cancel()));
        }
    }

    /// A daemon reads another configuration.
    pub(crate) fn edit(self: &Arc<Self>, daemon: usize, period_s: u64) {
        let before = self.period_s[daemon].swap(period_s, Ordering::Relaxed);
        let now = self.true_time();
        let due_before = self.row("latest").and_then(|row| {
            let next_at = row.claim_hint?.next_at?;
            (row.state.cursor < next_at && row.state.retrying.is_none()).then_some(next_at)
        });
        let (life, scheduler) = {
            let mut plot = self.plot();
            plot.people.wanted.entry(period_s).or_insert(now);
            if before != period_s {
                plot.people.owed.extend(due_before.filter(|at| *at < now - APART));
            }
            let daemon_of = &plot.daemons[daemon];
            (Life { daemon, life: daemon_of.life }, daemon_of.scheduler.clone())
        };
        self.log(format_args!("{daemon} is told to run `latest` every {period_s} s"));
        if let Some(scheduler) = scheduler {
            scheduler
                .reload(&self.registry(life), self.specs(daemon), |_| false)
                .expect("the configuration is good");
        }
    }

    pub(crate) fn state_of(&self, job: &str) -> Option<JobState> {
        self.row(job).map(|row| row.state)
    }

    fn row(&self, job: &str) -> Option<JobRow> {
        at_once(self.store.jobs()).ok()?.into_iter().find(|row| row.job == job)
    }

    fn true_time(&self) -> DateTime<Utc> {
        beginning() + TimeDelta::from_std(self.now()).expect("minutes")
    }
}

/// The store fills in which claim is meant.
fn cancel() -> ControlAction {
    ControlAction::Cancel { fencing_token: FencingToken(0) }
}

/// What is checked as it happens.
impl World {
    /// A claim is told of every pause that was asked for before.
    pub(crate) fn note_pauses(&self, lease: &Lease) {
        let people = &mut self.plot().people;
        let pauses = people.pauses.iter().filter(|pause| pause.job == lease.job).cloned().collect();
        people.known.insert((lease.job.clone(), lease.fencing_token), pauses);
    }

    /// A run that was cancelled is told to stop.
    pub(crate) fn check_told(&self, ctx: &JobContext, began: Duration) {
        let now = self.now();
        let is_ignored = self.plot().people.cancels.iter().any(|cancel| {
            cancel.job == ctx.occurrence.job
                && cancel.fencing_token == ctx.fencing_token
                && cancel.at > SETTLED.max(began)
                && cancel.at + TOLD < now
        });
        if is_ignored && ctx.stop_requested().is_none() {
            self.wrong(format!("the run of {} was cancelled, and is not told", ctx.occurrence));
        }
    }

    pub(crate) fn witness_for_people(&self, run: &RunRecord, before: Option<&JobState>, next: &JobState) {
        let mut plot = self.plot();
        let wrong = if run.cause == RunCause::Schedule {
            plot.people.check_scheduled(run, self.clocks_jump.load(Ordering::Relaxed))
        } else {
            plot.people.check_asked_for(run, before, next)
        };
        drop(plot);
        for wrong in wrong.into_iter().chain(self.check_settled(run)) {
            self.wrong(wrong);
        }
    }

    fn check_settled(&self, run: &RunRecord) -> Option<String> {
        let period_s = self.period_s[0].load(Ordering::Relaxed);
        let is_checked = run.job == "latest" && is_real(run) && run.cause == RunCause::Schedule;
        (is_checked && self.now() > STORM + CALM / 2 && !is_due_every(period_s, run.scheduled_at))
            .then(|| format!("`latest` runs at {}, and every {period_s} s by then", run.scheduled_at))
    }

    /// What must be so in the end.
    pub(crate) fn what_people_miss(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let open = at_once(self.store.control_state(None)).ok().flatten().unwrap_or_default();
        let is_over = |at: DateTime<Utc>| at < self.true_time() - LATEST;
        let runs = self.store.runs();
        let plot = self.plot();
        let people = &plot.people;
        for (id, job) in people.triggered.iter().filter(|(id, _)| !people.answered.contains(id)) {
            missed.push(format!("request {} to run `{job}` was never answered", id.as_u128()));
        }
        for (id, job) in &people.unanswered_resets {
            missed.push(format!("request {} to reset `{job}` was never answered", id.as_u128()));
        }
        for request in open.requests.iter().filter(|request| is_over(request.at)) {
            // What was to be cancelled may have ended before.
            if !matches!(request.action, ControlAction::Cancel { .. }) {
                missed.push(format!("request {} of `{}` is still open", request.id.as_u128(), request.job));
            }
        }
        if !self.clocks_jump.load(Ordering::Relaxed) {
            for at in &people.owed {
                let covers = |run: &RunRecord| {
                    let from = run.range.map_or(run.scheduled_at, |stretch| stretch.from);
                    run.job == "latest"
                        && run.cause == RunCause::Schedule
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

impl People {
    /// Whether somebody paused or cancelled it.
    pub(crate) fn know_of(&self, job: &str, at: DateTime<Utc>) -> bool {
        self.cancelled.contains_key(&(job.to_owned(), at))
            || self.passed.iter().any(|(of, from, until)| of == job && *from <= at && at <= *until)
    }

    fn check_scheduled(&mut self, run: &RunRecord, clocks_jump: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        let (job, at) = (&run.job, run.scheduled_at);
        if run.status == RunStatus::Paused {
            let from = run.range.map_or(at, |stretch| stretch.from);
            let is_in = |pause: &Paused| {
                pause.job == job && pause.since <= from && pause.until.is_some_and(|until| at < until)
            };
            if !self.pauses.iter().any(is_in) {
                wrong.push(format!("`{job}` was not paused from {from} to {at}"));
            }
            self.passed.push((job.clone(), from, at));
        }
        if !is_real(run) {
            return wrong;
        }
        for pause in self.known.get(&(job.clone(), run.fencing_token)).into_iter().flatten() {
            let is_paused = match pause.until {
                None => true,
                // What had begun before is tried again.
                Some(until) => run.attempt == 1 && pause.since <= at && at < until,
            };
            if is_paused {
                wrong.push(format!("{at} of `{job}` runs, which was paused at {}", pause.since));
            }
        }
        // A row may be written twice.
        if self.cancelled.get(&(job.clone(), at)).is_some_and(|cancelled| *cancelled != run.id) {
            wrong.push(format!("{at} of `{job}` was cancelled, and is run again"));
        }
        let control_state = self
            .cancels
            .iter_mut()
            .filter(|cancel| cancel.job == job && cancel.fencing_token == run.fencing_token);
        let is_meant =
            control_state.fold(false, |is, cancel| is | (*cancel.meant.get_or_insert(run.id) == run.id));
        if is_cancelled(run) {
            if !is_meant {
                wrong.push(format!("{at} of `{job}` is cancelled, and nobody wanted that"));
            }
            self.cancelled.insert((job.clone(), at), run.id);
        }
        // The time of a schedule before anybody wanted it, by a clock that is about right.
        let is_wanted = |(period_s, since): (&u64, &DateTime<Utc>)| {
            is_due_every(*period_s, at) && (*period_s == PERIOD_S || *since < at + APART)
        };
        if job == "latest"
            && !clocks_jump
            && !self.wanted.iter().any(is_wanted)
            && !is_due_every(PERIOD_S, at)
        {
            wrong.push(format!("`latest` runs at {at}, when nobody wanted it to"));
        }
        wrong
    }

    fn check_asked_for(
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
            wrong.push(format!("a run of `{job}` that was asked for changes where its schedule stands"));
        }
        if run.status == RunStatus::Retrying {
            wrong.push(format!("a run of `{job}` that was asked for is tried again by itself"));
        }
        let control_state = self
            .cancels
            .iter_mut()
            .filter(|cancel| cancel.job == job && cancel.fencing_token == run.fencing_token);
        for cancel in control_state {
            cancel.meant.get_or_insert(run.id);
        }
        if let Some(id) = run.request {
            self.answered.insert(id);
            if run.status == RunStatus::Interrupted && !is_cancelled(run) {
                wrong.push(format!(
                    "a run of `{job}` that was asked for did not end, and nobody is to repeat it"
                ));
            }
            let ends = matches!(run.status, RunStatus::Done | RunStatus::Dead);
            if ends && *self.answers.entry(id).or_insert(run.id) != run.id {
                wrong.push(format!("a run of `{job}` that was asked for once ended twice"));
            }
        }
        wrong
    }
}

impl People {
    /// Whether it is the row of a reset: the schedule continues from the present on request of an operator.
    pub(crate) fn is_reset(&self, run: &RunRecord) -> bool {
        run.cause == RunCause::Manual && run.request.is_some_and(|id| self.resets.contains(&id))
    }

    /// A reset only moves the schedule back. Times may then come again: those that ran are skipped, and what was
    /// cancelled may run.
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
        self.unanswered_resets.retain(|id, _| Some(*id) != run.request);
        wrong
    }
}

/// Whether somebody was at it.
fn is_real(run: &RunRecord) -> bool {
    use RunStatus::{Dead, Done, Interrupted, Retrying};
    matches!(run.status, Done | Dead | Retrying | Interrupted)
}

fn is_cancelled(run: &RunRecord) -> bool {
    run.status == RunStatus::Interrupted
        && run.reason.as_ref().is_some_and(|reason| reason.contains("cancelled by"))
}

fn is_due_every(period_s: u64, at: DateTime<Utc>) -> bool {
    let schedule = Schedule::every(Duration::from_secs(period_s)).expect("a period");
    let before = at - Duration::from_micros(1);
    schedule.next_after(before).ok().flatten() == Some(at)
}
