//! The answer to an attempt to deliver, and what follows from it: pure.

use std::time::Duration;

/// The time before each further attempt.
const BACKOFF: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(5),
    Duration::from_hours(10),
    Duration::from_hours(14),
    Duration::from_hours(20),
    Duration::from_hours(24),
];
/// The longest time that a receiver may request.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(24);

/// The state of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is attempted when `next_at` has come.
    Pending,
    /// The receiver accepted it.
    Sent,
    /// It is not attempted again, and an operator must know.
    Dead,
    /// A newer order replaces it.
    Superseded,
    /// It is not attempted again, and nothing is wrong.
    Cancelled,
}

impl Status {
    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Dead => "dead",
            Self::Superseded => "superseded",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How a receiver answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has done what the event requests.
    Done,
    /// It has begun, and the event is sent again until it is done.
    Begun,
    /// A person holds the instances in another state.
    Held,
    /// It did not accept, and may later.
    Failed,
    /// It will never accept this event.
    Refused,
}

/// The answer of a receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What follows from it.
    pub verdict: Verdict,
    /// The HTTP status, the SMTP code or the exit code.
    pub code: Option<i32>,
    /// What the receiver stated, for a person.
    pub detail: Option<String>,
    /// The earliest time of the next attempt that the receiver requests.
    pub retry_after: Option<Duration>,
}

impl Answer {
    pub(in crate::prepaid) fn new(
        verdict: Verdict,
        code: Option<i32>,
        detail: impl Into<Option<String>>,
    ) -> Self {
        Self { verdict, code, detail: detail.into(), retry_after: None }
    }

    /// There was no answer, for this reason.
    pub fn none(reason: impl Into<String>) -> Self {
        Self::new(Verdict::Failed, None, reason.into())
    }
}

/// The state of a delivery after its attempt number `attempts`, and the time before the next one if it is pending. `spread` is a random
/// number that is fixed for this attempt.
pub(in crate::prepaid) fn settle(attempts: u32, answer: &Answer, spread: u64) -> (Status, Duration) {
    match answer.verdict {
        Verdict::Done => (Status::Sent, Duration::ZERO),
        Verdict::Held => (Status::Cancelled, Duration::ZERO),
        Verdict::Refused => (Status::Dead, Duration::ZERO),
        Verdict::Begun | Verdict::Failed => {
            let backoff =
                usize::try_from(attempts).ok().and_then(|attempts| BACKOFF.get(attempts.max(1) - 1));
            let Some(backoff) = backoff else { return (Status::Dead, Duration::ZERO) };
            // From 80 % to 120 %, so that what failed together is not repeated together.
            let percent = u32::try_from(80 + spread % 41).unwrap_or(100);
            let requested = answer.retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
            (Status::Pending, (*backoff * percent / 100).max(requested))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_spread_and_end() {
        let failed = Answer::none("no route");
        let delays = (1..=9).map(|attempts| settle(attempts, &failed, 20));
        assert_eq!(delays.collect::<Vec<_>>(), BACKOFF.map(|backoff| (Status::Pending, backoff)));
        assert_eq!(settle(10, &failed, 20).0, Status::Dead);
        for (spread, millis) in
            [(0, 4_000), (40, 6_000), (41, 4_000), (u64::MAX, 4_000 + 50 * (u64::MAX % 41))]
        {
            assert_eq!(settle(1, &failed, spread).1, Duration::from_millis(millis), "{spread}");
        }
        let begun = Answer::new(Verdict::Begun, Some(202), None);
        assert_eq!(settle(2, &begun, 20), (Status::Pending, BACKOFF[1]));
        assert_eq!(settle(10, &begun, 20).0, Status::Dead);
    }

    #[test]
    fn receivers_request_a_later_attempt() {
        for (requested, expected) in [(1, 5), (90, 90), (100_000, 86_400)] {
            let answer = Answer { retry_after: Some(Duration::from_secs(requested)), ..Answer::none("busy") };
            assert_eq!(settle(1, &answer, 20), (Status::Pending, Duration::from_secs(expected)));
        }
    }

    #[test]
    fn final_answers_end_a_delivery() {
        for (verdict, status) in [
            (Verdict::Done, Status::Sent),
            (Verdict::Held, Status::Cancelled),
            (Verdict::Refused, Status::Dead),
        ] {
            assert_eq!(settle(1, &Answer::new(verdict, None, None), 0).0, status);
        }
    }
}
