//! When to look at which job next: what is due is found without looking at the rest.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

/// So many jobs whose time has passed are looked at at once. A look takes memory until it ends, and after a start every job
/// waits for its first one.
const MAX_LATE_CYCLES: usize = 256;

/// Jobs, by number, in the order of their next looks.
#[derive(Debug, Default)]
pub(crate) struct DueQueue {
    jobs: Vec<Slot>,
    wakeups: BTreeSet<(DateTime<Utc>, usize)>,
    /// How many of those that are looked at were late for it and have not come to a decision.
    late_cycles: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// Its next look is then.
    Waits(DateTime<Utc>),
    /// It is looked at.
    Busy,
    /// It is looked at, and something came meanwhile: once more as soon as that ends.
    BusyAgain,
}

/// A job whose turn has come, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wakeup {
    pub(crate) job: usize,
    /// Since when, or when.
    pub(crate) at: DateTime<Utc>,
    /// Whether that has passed. Whoever looks says when it has decided, or ended.
    pub(crate) is_late: bool,
}

const AT_ONCE: DateTime<Utc> = DateTime::<Utc>::MIN_UTC;

impl DueQueue {
    /// One more job, to be looked at at once. They are numbered from 0.
    pub(crate) fn add(&mut self) -> usize {
        let job = self.jobs.len();
        self.jobs.push(Slot::Waits(AT_ONCE));
        self.wakeups.insert((AT_ONCE, job));
        job
    }

    /// Takes out what is to be looked at up to `until`, earliest first. What is still to come waits for nobody; of what was
    /// before `now`, as much as there is room for.
    pub(crate) fn take(&mut self, now: DateTime<Utc>, until: DateTime<Utc>) -> Vec<Wakeup> {
        let mut taken = Vec::new();
        while self.late_cycles < MAX_LATE_CYCLES
            && let Some((at, job)) = self.wakeups.first().copied().filter(|(at, _)| *at <= now)
        {
            self.late_cycles += 1;
            self.wakeups.pop_first();
            taken.push(Wakeup { job, at, is_late: true });
        }
        if until > now {
            let coming = self.wakeups.extract_if((now, usize::MAX)..=(until, usize::MAX), |_| true);
            taken.extend(coming.map(|(at, job)| Wakeup { job, at, is_late: false }));
        }
        for wakeup in &taken {
            self.jobs[wakeup.job] = Slot::Busy;
        }
        taken
    }

    /// Takes out the look at one job, if it is after `now` and up to `until`.
    pub(crate) fn take_next(
        &mut self,
        job: usize,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> Option<Wakeup> {
        let Slot::Waits(at) = self.jobs[job] else { return None };
        if at <= now || at > until {
            return None;
        }
        self.wakeups.remove(&(at, job));
        self.jobs[job] = Slot::Busy;
        Some(Wakeup { job, at, is_late: false })
    }

    /// One of those that were late has come to a decision.
    pub(crate) fn release_late_slot(&mut self) {
        self.late_cycles -= 1;
    }

    /// The look at `job` has ended, and the next one is at `at`.
    pub(crate) fn put(&mut self, job: usize, at: DateTime<Utc>) {
        let at = if self.is_requeued(job) { AT_ONCE } else { at };
        self.jobs[job] = Slot::Waits(at);
        self.wakeups.insert((at, job));
    }

    /// At once, or as soon as the look under way ends.
    pub(crate) fn requeue(&mut self, job: usize) {
        match self.jobs[job] {
            Slot::Waits(at) => {
                self.wakeups.remove(&(at, job));
                self.put(job, AT_ONCE);
            }
            Slot::Busy | Slot::BusyAgain => self.jobs[job] = Slot::BusyAgain,
        }
    }

    /// Whether something came since the look under way began.
    pub(crate) fn is_requeued(&self, job: usize) -> bool {
        self.jobs[job] == Slot::BusyAgain
    }

    /// Times noted so far mean nothing any more, nor do those that looks under way come to.
    pub(crate) fn requeue_all(&mut self) {
        for slot in self.jobs.iter_mut().filter(|slot| **slot == Slot::Busy) {
            *slot = Slot::BusyAgain;
        }
        for (_, job) in std::mem::take(&mut self.wakeups) {
            self.put(job, AT_ONCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600 + second, 0).expect("in range")
    }

    fn of(jobs: usize) -> DueQueue {
        let mut due_queue = DueQueue::default();
        for _ in 0..jobs {
            due_queue.add();
        }
        due_queue
    }

    fn take(due_queue: &mut DueQueue, now: i64, until: i64) -> Vec<usize> {
        due_queue.take(second(now), second(until)).iter().map(|wakeup| wakeup.job).collect()
    }

    #[test]
    fn what_is_due_is_taken_in_order_and_once() {
        let mut due_queue = of(4);
        assert_eq!(take(&mut due_queue, 0, 1), [0, 1, 2, 3]);
        for (job, at) in [(0, 9), (1, 2), (2, 1), (3, 2)] {
            due_queue.put(job, second(at));
        }
        assert_eq!(take(&mut due_queue, 0, 0), [0; 0]);
        assert_eq!(take(&mut due_queue, 1, 2), [2, 1, 3]);
        assert_eq!(take(&mut due_queue, 2, 3), [0; 0], "they are looked at");
        due_queue.requeue_all();
        assert_eq!(take(&mut due_queue, -100, -99), [0]);
        due_queue.put(2, second(3_000));
        assert_eq!(
            take(&mut due_queue, -100, -99),
            [2],
            "what a wakeup came to that began before is not to be trusted"
        );
    }

    #[test]
    fn what_comes_during_a_look_makes_another_one() {
        let mut due_queue = of(2);
        take(&mut due_queue, 0, 1);
        due_queue.requeue(0);
        assert!(due_queue.is_requeued(0));
        for job in [0, 1] {
            due_queue.put(job, second(60));
        }
        assert_eq!(take(&mut due_queue, 1, 2), [0]);
        assert!(!due_queue.is_requeued(0));
        due_queue.requeue(1);
        assert_eq!(take(&mut due_queue, 1, 2), [1]);
        due_queue.put(1, second(60));
        assert_eq!(take(&mut due_queue, 60, 61), [1], "once");
    }

    #[test]
    fn a_crowd_whose_time_has_passed_does_not_delay_what_is_still_to_come() {
        let mut due_queue = of(MAX_LATE_CYCLES + 6);
        let last = MAX_LATE_CYCLES + 5;
        assert_eq!(take(&mut due_queue, 0, 1).len(), MAX_LATE_CYCLES);
        for _ in 0..6 {
            due_queue.release_late_slot();
        }
        assert_eq!(take(&mut due_queue, 0, 1).last(), Some(&last));
        due_queue.put(last, second(5));
        due_queue.put(0, second(1));
        assert_eq!(take(&mut due_queue, 4, 5), [last], "there is no room for another late one");
        due_queue.release_late_slot();
        assert_eq!(take(&mut due_queue, 4, 5), [0]);
    }
}
