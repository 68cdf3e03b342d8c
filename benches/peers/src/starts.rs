//! The observed starts of jobs: which job started, how often, and when.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The starts of one measurement. Jobs are numbered from 0.
pub(crate) struct Starts {
    /// When each job started first, in microseconds since 1970; 0 before that.
    first_us: Vec<AtomicU64>,
    started: AtomicUsize,
    repeated: AtomicUsize,
}

/// The current measurement. The handlers of some peers are functions that capture nothing.
static CURRENT: RwLock<Option<Arc<Starts>>> = RwLock::new(None);

/// Records a start of job number `job` in the current measurement.
pub(crate) fn record(job: u64) {
    let current = CURRENT.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(starts) = current.as_deref() {
        starts.record(job);
    }
}

/// The lateness of the jobs of one instant, in milliseconds, and what was lost.
#[derive(Clone, serde::Serialize)]
pub(crate) struct Lateness {
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
    pub(crate) lost: usize,
    pub(crate) repeated: usize,
}

impl Starts {
    /// Begins a measurement of `jobs` jobs.
    pub(crate) fn begin(jobs: usize) -> Arc<Self> {
        let starts = Arc::new(Self {
            first_us: (0..jobs).map(|_| AtomicU64::new(0)).collect(),
            started: AtomicUsize::new(0),
            repeated: AtomicUsize::new(0),
        });
        *CURRENT.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&starts));
        starts
    }

    pub(crate) fn record(&self, job: u64) {
        let Some(slot) = usize::try_from(job).ok().and_then(|job| self.first_us.get(job)) else { return };
        if slot.compare_exchange(0, now_us(), Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.started.fetch_add(1, Ordering::Relaxed);
        } else {
            self.repeated.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The number of jobs that have started.
    pub(crate) fn count(&self) -> usize {
        self.started.load(Ordering::Relaxed)
    }

    /// When a job started first, in microseconds since 1970.
    pub(crate) fn started_us(&self, job: u64) -> Option<u64> {
        let at = self.first_us.get(usize::try_from(job).ok()?)?.load(Ordering::Relaxed);
        (at > 0).then_some(at)
    }

    /// Returns the lateness of the jobs that were due at `due_us`.
    pub(crate) fn lateness(&self, due_us: u64) -> Lateness {
        let first = self.first_us.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(|at| *at > 0);
        // A start before the instant would be an error of the peer: it is shown as negative lateness.
        let mut late: Vec<i64> = first.map(|at| at.cast_signed() - due_us.cast_signed()).collect();
        late.sort_unstable();
        Lateness {
            p50_ms: quantile_ms(&late, 50),
            p99_ms: quantile_ms(&late, 99),
            max_ms: quantile_ms(&late, 100),
            lost: self.first_us.len() - late.len(),
            repeated: self.repeated.load(Ordering::Relaxed),
        }
    }
}

/// Returns a quantile of sorted microseconds, in milliseconds.
pub(crate) fn quantile_ms(sorted_us: &[i64], percent: usize) -> Option<f64> {
    let place = (sorted_us.len().saturating_sub(1) * percent).div_ceil(100);
    sorted_us.get(place).map(|us| *us as f64 / 1_000.0)
}

/// Returns an instant at a whole second, at least `lead` ahead, in microseconds since 1970.
pub(crate) fn whole_second_after(lead: Duration) -> u64 {
    let second = 1_000_000;
    (now_us() + u64::try_from(lead.as_micros()).expect("seconds")).div_ceil(second) * second
}

pub(crate) fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
    u64::try_from(now.as_micros()).expect("the clock is before the year 500,000")
}

/// Sleeps until an instant in microseconds since 1970.
pub(crate) async fn sleep_until(at_us: u64) {
    tokio::time::sleep(Duration::from_micros(at_us.saturating_sub(now_us()))).await;
}
