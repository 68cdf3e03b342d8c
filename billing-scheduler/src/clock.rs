//! The only source of time, so that tests can replace it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch;

/// The clock of the scheduler and its jobs.
#[async_trait]
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Returns the wall clock in UTC, in whole microseconds, which databases can store.
    fn now(&self) -> DateTime<Utc>;

    /// Returns the time since an arbitrary origin. It never decreases, and includes the time in which the host was suspended.
    fn monotonic(&self) -> Duration;

    /// Returns when [`Clock::monotonic`] has grown by `duration`.
    async fn sleep(&self, duration: Duration);

    /// Returns the last measured difference between the clock of a store and the host's: positive if the host's clock is behind.
    /// `None` if this clock is not compared with another one.
    fn offset(&self) -> Option<TimeDelta> {
        None
    }
}

/// The clocks of the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> DateTime<Utc> {
        // No arithmetic of calendars: each start of a run reads the clock.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX);
        DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    fn monotonic(&self) -> Duration {
        monotonic()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

#[cfg(all(target_os = "linux", feature = "runtime"))]
fn monotonic() -> Duration {
    // CLOCK_MONOTONIC stops while the host is suspended, but a lease expires.
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(not(all(target_os = "linux", feature = "runtime")))]
fn monotonic() -> Duration {
    use std::{sync::OnceLock, time::Instant};
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed()
}

/// A clock that only moves when a test sets it.
#[derive(Clone, Debug)]
pub struct ManualClock {
    times: Arc<Mutex<Times>>,
    moved: watch::Sender<()>,
}

#[derive(Debug)]
struct Times {
    wall: DateTime<Utc>,
    monotonic: Duration,
}

impl ManualClock {
    /// Returns a clock that shows `wall`.
    #[must_use]
    pub fn at(wall: DateTime<Utc>) -> Self {
        Self {
            times: Arc::new(Mutex::new(Times { wall, monotonic: Duration::ZERO })),
            moved: watch::Sender::new(()),
        }
    }

    /// Moves the wall clock and the monotonic clock forward by `duration`, and wakes tasks that slept until then.
    pub fn advance(&self, duration: Duration) {
        self.change(|times| {
            times.wall += duration;
            times.monotonic += duration;
        });
    }

    /// Sets the wall clock, forward or back, as an administrator would. The monotonic clock does not change.
    pub fn set_wall(&self, wall: DateTime<Utc>) {
        self.change(|times| times.wall = wall);
    }

    fn change(&self, change: impl FnOnce(&mut Times)) {
        change(&mut self.times.lock().unwrap_or_else(PoisonError::into_inner));
        self.moved.send_replace(());
    }

    fn read<T>(&self, read: impl FnOnce(&Times) -> T) -> T {
        read(&self.times.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        self.read(|times| times.wall)
    }

    fn monotonic(&self) -> Duration {
        self.read(|times| times.monotonic)
    }

    async fn sleep(&self, duration: Duration) {
        let wake_at = self.monotonic() + duration;
        let mut moved = self.moved.subscribe();
        while self.monotonic() < wake_at {
            if moved.changed().await.is_err() {
                return;
            }
        }
    }
}
