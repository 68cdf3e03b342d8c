//! The jobs in the order of their next wake-ups. Finding what is due does not touch the other jobs.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

/// How many late jobs may decide at the same time. A lease cycle takes memory until it ends, and after a start every job waits
/// for its first one.
const MAX_LATE_CYCLES: usize = 256;

/// Earlier than every instant: wakes a job with the next call of [`DueQueue::take`].
const IMMEDIATELY: DateTime<Utc> = DateTime::<Utc>::MIN_UTC;

/// Later than every instant: the wake-up of a job that was removed.
pub(super) const NEVER: DateTime<Utc> = DateTime::<Utc>::MAX_UTC;

/// A priority queue of jobs by the time of their next wake-up. Jobs are numbered from 0.
#[derive(Debug, Default)]
pub(super) struct DueQueue {
    slots: Vec<Slot>,
    wakeups: BTreeSet<WakeupKey>,
    /// The number of late lease cycles that have not decided yet.
    late_cycles: usize,
}

/// The time of a wake-up and the job's number, in 16 bytes: every job has one.
type WakeupKey = (DateTime<Utc>, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// The job waits until then.
    Waits(DateTime<Utc>),
    /// A lease cycle of the job is running; `again` if another one follows immediately.
    Busy { again: bool },
}

/// A job to start a lease cycle for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wakeup {
    pub(super) job: usize,
    pub(super) at: DateTime<Utc>,
    /// Whether `at` has passed. A late cycle occupies one of [`MAX_LATE_CYCLES`] places until it has decided.
    pub(super) is_late: bool,
}

impl DueQueue {
    /// Adds a job, to be woken immediately; returns its number.
    pub(super) fn add(&mut self) -> usize {
        let job = self.slots.len();
        self.slots.push(Slot::Waits(IMMEDIATELY));
        self.wakeups.insert(key(IMMEDIATELY, job));
        job
    }

    /// Takes the wake-ups up to `until`, earliest first. Those after `now` are all taken; those before it, while there are places
    /// for late cycles.
    pub(super) fn take(&mut self, now: DateTime<Utc>, until: DateTime<Utc>) -> Vec<Wakeup> {
        let mut taken = Vec::new();
        while self.late_cycles < MAX_LATE_CYCLES
            && let Some((at, job)) = self.wakeups.first().copied().filter(|(at, _)| *at <= now)
        {
            self.late_cycles += 1;
            self.wakeups.pop_first();
            taken.push(Wakeup { job: job as usize, at, is_late: true });
        }
        while until > now
            && let Some((at, job)) = self.wakeups.range((now, u32::MAX)..=(until, u32::MAX)).next().copied()
        {
            self.wakeups.remove(&(at, job));
            taken.push(Wakeup { job: job as usize, at, is_late: false });
        }
        for wakeup in &taken {
            self.slots[wakeup.job] = Slot::Busy { again: false };
        }
        taken
    }

    /// Takes the wake-up of one job if it is after `now` and not after `until`.
    pub(super) fn take_next(
        &mut self,
        job: usize,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> Option<Wakeup> {
        match self.slots[job] {
            Slot::Waits(at) if at > now && at <= until => self.take_early(job),
            Slot::Waits(_) | Slot::Busy { .. } => None,
        }
    }

    /// Takes the wake-up of one job, whenever it is; `None` if a lease cycle of the job is running.
    pub(super) fn take_early(&mut self, job: usize) -> Option<Wakeup> {
        let Slot::Waits(at) = self.slots[job] else { return None };
        self.wakeups.remove(&key(at, job));
        self.slots[job] = Slot::Busy { again: false };
        Some(Wakeup { job, at, is_late: false })
    }

    /// Frees the place of a late cycle that has decided.
    pub(super) fn release_late_slot(&mut self) {
        self.late_cycles -= 1;
    }

    /// Ends the lease cycle of `job`. The next wake-up is at `at`, or immediately if the job was requeued.
    pub(super) fn put(&mut self, job: usize, at: DateTime<Utc>) {
        let at = if self.is_requeued(job) { IMMEDIATELY } else { at };
        self.slots[job] = Slot::Waits(at);
        self.wakeups.insert(key(at, job));
    }

    /// Wakes `job` immediately, or as soon as its running lease cycle ends.
    pub(super) fn requeue(&mut self, job: usize) {
        match self.slots[job] {
            Slot::Waits(at) => {
                self.wakeups.remove(&key(at, job));
                self.put(job, IMMEDIATELY);
            }
            Slot::Busy { .. } => self.slots[job] = Slot::Busy { again: true },
        }
    }

    /// Whether `job` was requeued since its running lease cycle began.
    pub(super) fn is_requeued(&self, job: usize) -> bool {
        self.slots[job] == Slot::Busy { again: true }
    }

    /// Returns the earliest wake-up.
    pub(super) fn first(&self) -> Option<DateTime<Utc>> {
        self.wakeups.first().map(|(at, _)| *at)
    }

    /// Returns the jobs that never wake up again.
    pub(super) fn retired(&self) -> impl Iterator<Item = usize> {
        self.wakeups.range((NEVER, 0)..).map(|(_, job)| *job as usize)
    }

    /// Wakes every job immediately, because the clock was set back: the recorded wake-ups are wrong, and so are those that running
    /// lease cycles will record.
    pub(super) fn requeue_all(&mut self) {
        for slot in &mut self.slots {
            if let Slot::Busy { again } = slot {
                *again = true;
            }
        }
        for (_, job) in std::mem::take(&mut self.wakeups) {
            self.put(job as usize, IMMEDIATELY);
        }
    }
}

fn key(at: DateTime<Utc>, job: usize) -> WakeupKey {
    (at, u32::try_from(job).expect("a process has fewer than four billion jobs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600 + second, 0).expect("in range")
    }

    fn queue_of(jobs: usize) -> DueQueue {
        let mut queue = DueQueue::default();
        for _ in 0..jobs {
            queue.add();
        }
        queue
    }

    fn take(queue: &mut DueQueue, now: i64, until: i64) -> Vec<usize> {
        queue.take(second(now), second(until)).iter().map(|wakeup| wakeup.job).collect()
    }

    #[test]
    fn slots_stay_small() {
        assert_eq!(size_of::<Slot>(), size_of::<DateTime<Utc>>());
    }

    #[test]
    fn due_jobs_are_taken_once_in_order() {
        let mut queue = queue_of(4);
        assert_eq!(take(&mut queue, 0, 1), [0, 1, 2, 3]);
        for (job, at) in [(0, 9), (1, 2), (2, 1), (3, 2)] {
            queue.put(job, second(at));
        }
        assert_eq!(take(&mut queue, 0, 0), [0; 0]);
        assert_eq!(take(&mut queue, 1, 2), [2, 1, 3]);
        assert_eq!(take(&mut queue, 2, 3), [0; 0], "their lease cycles are running");
        queue.requeue_all();
        assert_eq!(take(&mut queue, -100, -99), [0]);
        queue.put(2, second(3_000));
        assert_eq!(
            take(&mut queue, -100, -99),
            [2],
            "the wake-up of a cycle that began before the clock changed is ignored"
        );
    }

    #[test]
    fn requeue_during_a_cycle_starts_another() {
        let mut queue = queue_of(2);
        take(&mut queue, 0, 1);
        queue.requeue(0);
        assert!(queue.is_requeued(0));
        for job in [0, 1] {
            queue.put(job, second(60));
        }
        assert_eq!(take(&mut queue, 1, 2), [0]);
        assert!(!queue.is_requeued(0));
        queue.requeue(1);
        assert_eq!(take(&mut queue, 1, 2), [1]);
        queue.put(1, second(60));
        assert_eq!(take(&mut queue, 60, 61), [1], "once");
    }

    #[test]
    fn early_wakeup_is_taken_only_while_waiting() {
        let mut queue = queue_of(1);
        let wakeup = queue.take_early(0).expect("it waits");
        assert_eq!(queue.take_early(0), None, "its lease cycle is running");
        queue.put(0, wakeup.at);
        assert_eq!(take(&mut queue, 0, 1), [0], "the wake-up was put back");
    }

    #[test]
    fn late_jobs_do_not_delay_punctual_ones() {
        let mut queue = queue_of(MAX_LATE_CYCLES + 6);
        let last = MAX_LATE_CYCLES + 5;
        assert_eq!(take(&mut queue, 0, 1).len(), MAX_LATE_CYCLES);
        for _ in 0..6 {
            queue.release_late_slot();
        }
        assert_eq!(take(&mut queue, 0, 1).last(), Some(&last));
        queue.put(last, second(5));
        queue.put(0, second(1));
        assert_eq!(take(&mut queue, 4, 5), [last], "no place is free for another late one");
        queue.release_late_slot();
        assert_eq!(take(&mut queue, 4, 5), [0]);
    }
}
