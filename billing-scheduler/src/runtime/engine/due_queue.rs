//! When to look at which job next: what is due is found without looking at the rest.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

/// So many jobs whose time has passed are looked at at once. A look takes memory until it ends, and after a start every job
/// waits for its first one.
const CROWD: usize = 256;

/// Jobs, by number, in the order of their next looks.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    jobs: Vec<Place>,
    looks: BTreeSet<(DateTime<Utc>, usize)>,
    /// How many of those that are looked at were late for it and have not come to a decision.
    crowd: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Its next look is then.
    Waits(DateTime<Utc>),
    /// It is looked at.
    Busy,
    /// It is looked at, and something came meanwhile: once more as soon as that ends.
    BusyAgain,
}

/// A job whose turn has come, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) job: usize,
    /// Since when, or when.
    pub(crate) at: DateTime<Utc>,
    /// Whether that has passed. Whoever looks says when it has decided, or ended.
    pub(crate) is_late: bool,
}

const AT_ONCE: DateTime<Utc> = DateTime::<Utc>::MIN_UTC;

impl Agenda {
    /// One more job, to be looked at at once. They are numbered from 0.
    pub(crate) fn add(&mut self) -> usize {
        let job = self.jobs.len();
        self.jobs.push(Place::Waits(AT_ONCE));
        self.looks.insert((AT_ONCE, job));
        job
    }

    /// Takes out what is to be looked at up to `until`, earliest first. What is still to come waits for nobody; of what was
    /// before `now`, as much as there is room for.
    pub(crate) fn take(&mut self, now: DateTime<Utc>, until: DateTime<Utc>) -> Vec<Look> {
        let mut taken = Vec::new();
        while self.crowd < CROWD
            && let Some((at, job)) = self.looks.first().copied().filter(|(at, _)| *at <= now)
        {
            self.crowd += 1;
            self.looks.pop_first();
            taken.push(Look { job, at, is_late: true });
        }
        if until > now {
            let coming = self.looks.extract_if((now, usize::MAX)..=(until, usize::MAX), |_| true);
            taken.extend(coming.map(|(at, job)| Look { job, at, is_late: false }));
        }
        for look in &taken {
            self.jobs[look.job] = Place::Busy;
        }
        taken
    }

    /// Takes out the look at one job, if it is after `now` and up to `until`.
    pub(crate) fn take_next(&mut self, job: usize, now: DateTime<Utc>, until: DateTime<Utc>) -> Option<Look> {
        let Place::Waits(at) = self.jobs[job] else { return None };
        if at <= now || at > until {
            return None;
        }
        self.looks.remove(&(at, job));
        self.jobs[job] = Place::Busy;
        Some(Look { job, at, is_late: false })
    }

    /// One of those that were late has come to a decision.
    pub(crate) fn leave_crowd(&mut self) {
        self.crowd -= 1;
    }

    /// The look at `job` has ended, and the next one is at `at`.
    pub(crate) fn put(&mut self, job: usize, at: DateTime<Utc>) {
        let at = if self.is_wanted_again(job) { AT_ONCE } else { at };
        self.jobs[job] = Place::Waits(at);
        self.looks.insert((at, job));
    }

    /// At once, or as soon as the look under way ends.
    pub(crate) fn look_again(&mut self, job: usize) {
        match self.jobs[job] {
            Place::Waits(at) => {
                self.looks.remove(&(at, job));
                self.put(job, AT_ONCE);
            }
            Place::Busy | Place::BusyAgain => self.jobs[job] = Place::BusyAgain,
        }
    }

    /// Whether something came since the look under way began.
    pub(crate) fn is_wanted_again(&self, job: usize) -> bool {
        self.jobs[job] == Place::BusyAgain
    }

    /// Times noted so far mean nothing any more, nor do those that looks under way come to.
    pub(crate) fn look_at_all(&mut self) {
        for place in self.jobs.iter_mut().filter(|place| **place == Place::Busy) {
            *place = Place::BusyAgain;
        }
        for (_, job) in std::mem::take(&mut self.looks) {
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

    fn of(jobs: usize) -> Agenda {
        let mut agenda = Agenda::default();
        for _ in 0..jobs {
            agenda.add();
        }
        agenda
    }

    fn take(agenda: &mut Agenda, now: i64, until: i64) -> Vec<usize> {
        agenda.take(second(now), second(until)).iter().map(|look| look.job).collect()
    }

    #[test]
    fn what_is_due_is_taken_in_order_and_once() {
        let mut agenda = of(4);
        assert_eq!(take(&mut agenda, 0, 1), [0, 1, 2, 3]);
        for (job, at) in [(0, 9), (1, 2), (2, 1), (3, 2)] {
            agenda.put(job, second(at));
        }
        assert_eq!(take(&mut agenda, 0, 0), [0; 0]);
        assert_eq!(take(&mut agenda, 1, 2), [2, 1, 3]);
        assert_eq!(take(&mut agenda, 2, 3), [0; 0], "they are looked at");
        agenda.look_at_all();
        assert_eq!(take(&mut agenda, -100, -99), [0]);
        agenda.put(2, second(3_000));
        assert_eq!(
            take(&mut agenda, -100, -99),
            [2],
            "what a look came to that began before is not to be trusted"
        );
    }

    #[test]
    fn what_comes_during_a_look_makes_another_one() {
        let mut agenda = of(2);
        take(&mut agenda, 0, 1);
        agenda.look_again(0);
        assert!(agenda.is_wanted_again(0));
        for job in [0, 1] {
            agenda.put(job, second(60));
        }
        assert_eq!(take(&mut agenda, 1, 2), [0]);
        assert!(!agenda.is_wanted_again(0));
        agenda.look_again(1);
        assert_eq!(take(&mut agenda, 1, 2), [1]);
        agenda.put(1, second(60));
        assert_eq!(take(&mut agenda, 60, 61), [1], "once");
    }

    #[test]
    fn a_crowd_whose_time_has_passed_does_not_delay_what_is_still_to_come() {
        let mut agenda = of(CROWD + 6);
        let last = CROWD + 5;
        assert_eq!(take(&mut agenda, 0, 1).len(), CROWD);
        for _ in 0..6 {
            agenda.leave_crowd();
        }
        assert_eq!(take(&mut agenda, 0, 1).last(), Some(&last));
        agenda.put(last, second(5));
        agenda.put(0, second(1));
        assert_eq!(take(&mut agenda, 4, 5), [last], "there is no room for another late one");
        agenda.leave_crowd();
        assert_eq!(take(&mut agenda, 4, 5), [0]);
    }
}
