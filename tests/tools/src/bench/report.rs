//! The report of a benchmark.

use std::fmt;

use serde::Serialize;

use super::{Cost, Measured, Options};

/// Medians over the rounds. Rates are instances per second; a ratio above 1 is in our favour.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    database: &'static str,
    instances: u32,
    history: u32,
    hours: u32,
    connections: Option<u32>,
    ours_per_s: f64,
    original_per_s: f64,
    floor_per_s: f64,
    vs_original: f64,
    vs_floor: f64,
    /// The peak of the process that bills, in MiB.
    rss_mb: f64,
    wal_bytes_per_instance: f64,
    /// Processor time of the database's server; 0 without a server.
    server_cpu_us_per_instance: f64,
    /// How many times as long as one hour it takes to bill 72 hours of each instance at once.
    catch_up_72h_vs_1h: f64,
    /// How long a top-up of a wallet took while everything was billed.
    top_up_p50_ms: f64,
    top_up_p99_ms: f64,
    top_up_max_ms: f64,
    top_ups: usize,
}

impl Report {
    pub(super) fn new(options: &Options, measured: &Measured) -> Self {
        let Measured { bills, floor, original, peak_mb, catch_up, waits } = measured;
        let instances = f64::from(options.instances);
        let median_of =
            |part: fn(&Cost) -> f64| median(&bills.iter().map(part).collect::<Vec<_>>()) / instances;
        let ours = median_of(|cost| cost.seconds);
        Self {
            database: options.engine.name(),
            instances: options.instances,
            history: options.history,
            hours: options.hours,
            connections: options.connections,
            ours_per_s: rounded(1.0 / ours, 0),
            original_per_s: rounded(1.0 / *original, 0),
            floor_per_s: rounded(1.0 / floor, 0),
            vs_original: rounded(original / ours, 2),
            vs_floor: rounded(floor / ours, 3),
            rss_mb: rounded(*peak_mb, 1),
            wal_bytes_per_instance: rounded(median_of(|cost| cost.wal_bytes), 0),
            server_cpu_us_per_instance: rounded(median_of(|cost| cost.server_cpu_seconds) * 1e6, 1),
            catch_up_72h_vs_1h: rounded(*catch_up, 2),
            top_up_p50_ms: rounded(waits.quantile(0.5), 1),
            top_up_p99_ms: rounded(waits.quantile(0.99), 1),
            top_up_max_ms: rounded(waits.quantile(1.0), 1),
            top_ups: waits.len(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} instances on {}, {} charges of history",
            self.instances, self.database, self.history
        )?;
        writeln!(f, "  ours      {:>9.0}/s", self.ours_per_s)?;
        writeln!(f, "  original  {:>9.0}/s   ours is {} x as fast", self.original_per_s, self.vs_original)?;
        writeln!(f, "  floor     {:>9.0}/s   ours is {} x as fast", self.floor_per_s, self.vs_floor)?;
        writeln!(f, "  memory    {:>9.1} MiB", self.rss_mb)?;
        if self.server_cpu_us_per_instance > 0.0 {
            writeln!(
                f,
                "  server    {:>9.1} us of processor and {} bytes of log an instance",
                self.server_cpu_us_per_instance, self.wal_bytes_per_instance
            )?;
        }
        writeln!(f, "  catch-up  {:>9.2} x the time of one hour for 72 hours", self.catch_up_72h_vs_1h)?;
        write!(
            f,
            "  top-ups   {:>9.1} ms (p50), {} ms (p99), {} ms (longest of {})",
            self.top_up_p50_ms, self.top_up_p99_ms, self.top_up_max_ms, self.top_ups
        )
    }
}

pub(crate) fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

fn rounded(number: f64, decimals: i32) -> f64 {
    let scale = 10_f64.powi(decimals);
    (number * scale).round() / scale
}
