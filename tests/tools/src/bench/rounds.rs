//! A fleet on PostgreSQL that is billed hour by hour, for a measurement that changes something else between the hours.

use super::{Bench as _, Options, ours::Ours, postgres::PostgresEngine};

/// A fleet, billed up to some hour.
pub(crate) struct Rounds {
    bench: PostgresEngine,
    ours: Ours,
    hour: u32,
}

impl Rounds {
    /// A generated fleet of which no hour is billed yet.
    pub(crate) async fn seeded(options: &Options) -> Self {
        let bench = PostgresEngine::seeded_alone(options).await;
        let ours = Ours::new(options, bench.url());
        Self { bench, ours, hour: 0 }
    }

    /// The URL of the database.
    pub(crate) fn url(&self) -> String {
        self.bench.url()
    }

    /// Bills the next hour of each instance in a separate process; returns how many seconds that took.
    pub(crate) async fn bill(&mut self) -> f64 {
        self.hour += 1;
        self.bench.settle().await;
        self.ours.bill(self.hour).await.seconds
    }
}
