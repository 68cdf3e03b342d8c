//! Compares two builds of this program: both measure the same workload in alternation, each on its own database, until the 95 %
//! confidence interval of the ratio excludes a loss of 5 %, or proves one.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    process::{ExitCode, Stdio},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// The costs of one round of a workload: the name of a metric and its value. Less is better.
pub type Costs = BTreeMap<String, f64>;

/// A loss above this ratio fails the comparison.
const TOLERATED: f64 = 1.05;
/// The numbers of pairs of rounds after which the interval is evaluated. Only a few, since each evaluation may be wrong by chance.
const LOOKS: [usize; 7] = [6, 9, 14, 20, 30, 45, 64];
/// A proven loss.
const LOSS: u8 = 1;
/// The rounds differed too much from each other: repeat on a quiet host (`EX_TEMPFAIL`).
const UNDECIDED: u8 = 75;

/// Quantiles of Student's t distribution for two-sided 95 %, by degrees of freedom from 1.
const T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// The ratio of this build to the other one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The geometric mean of the ratios of all pairs.
    pub estimate: f64,
    /// The lower end of the 95 % confidence interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// What a confidence interval proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The loss is below 5 %.
    Passed,
    /// The loss is above 5 %.
    Lost,
    /// Both are possible.
    Undecided,
}

impl Ratio {
    /// Computes the interval from pairs (this build, the other build) that were measured one after the other.
    #[must_use]
    pub fn of(pairs: &[(f64, f64)]) -> Self {
        let logs: Vec<f64> = pairs.iter().map(|(this, other)| (this / other).ln()).collect();
        #[expect(clippy::cast_precision_loss, reason = "there are at most 64 pairs")]
        let n = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / n;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let t = T.get(logs.len().saturating_sub(2)).copied().unwrap_or(2.0);
        let half = if logs.len() < 2 { f64::INFINITY } else { t * (variance / n).sqrt() };
        Self { estimate: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp() }
    }

    /// What the interval proves about a loss of 5 %.
    #[must_use]
    pub fn verdict(self) -> Verdict {
        if self.high < TOLERATED {
            Verdict::Passed
        } else if self.low > TOLERATED {
            Verdict::Lost
        } else {
            Verdict::Undecided
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} (95 %: {:.3} to {:.3})", self.estimate, self.low, self.high)
    }
}

/// Measures both programs, each with its arguments, and prints a line for each metric.
pub async fn compare(this: (PathBuf, &[String]), other: (PathBuf, &[String])) -> ExitCode {
    let (mut this, mut other) = (Worker::start(this.0, this.1).await, Worker::start(other.0, other.1).await);
    let mut pairs: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for round in 1..=LOOKS[LOOKS.len() - 1] {
        // Each is first in every second round, so that a drift of the host favours neither.
        let (of_this, of_other) = if round % 2 == 0 {
            let of_this = this.round().await;
            (of_this, other.round().await)
        } else {
            let of_other = other.round().await;
            (this.round().await, of_other)
        };
        for (metric, cost) in of_this {
            if let Some(other) = of_other.get(&metric) {
                pairs.entry(metric).or_default().push((cost, *other));
            }
        }
        if LOOKS.contains(&round) {
            let undecided = |pairs: &Vec<_>| Ratio::of(pairs).verdict() == Verdict::Undecided;
            eprintln!("{round} pairs: {}", summary(&pairs));
            if !pairs.values().any(undecided) {
                break;
            }
        }
    }
    let mut code = 0;
    for (metric, pairs) in &pairs {
        let ratio = Ratio::of(pairs);
        let verdict = ratio.verdict();
        println!("{verdict:?}: {metric}: this / other = {ratio}, {} pairs", pairs.len());
        code = match verdict {
            Verdict::Lost => LOSS,
            Verdict::Undecided if code == 0 => UNDECIDED,
            _ => code,
        };
    }
    ExitCode::from(code)
}

fn summary(pairs: &BTreeMap<String, Vec<(f64, f64)>>) -> String {
    let of_metric = |(metric, pairs): (&String, &Vec<_>)| format!("{metric} {}", Ratio::of(pairs));
    pairs.iter().map(of_metric).collect::<Vec<_>>().join(", ")
}

/// A process that runs one round of the workload for each line that it reads, and prints the costs as JSON.
struct Worker {
    program: PathBuf,
    requests: ChildStdin,
    costs: Lines<BufReader<ChildStdout>>,
    /// Killed when the worker is dropped.
    _process: Child,
}

impl Worker {
    async fn start(program: PathBuf, arguments: &[String]) -> Self {
        let mut process = Command::new(&program)
            .args(arguments)
            .arg("--worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let requests = process.stdin.take().expect("stdin is a pipe");
        let costs = BufReader::new(process.stdout.take().expect("stdout is a pipe")).lines();
        let mut worker = Self { program, requests, costs, _process: process };
        // The warm-up; its costs are not used.
        worker.round().await;
        worker
    }

    async fn round(&mut self) -> Costs {
        self.requests.write_all(b"round\n").await.expect("the worker reads");
        let line = self.costs.next_line().await.expect("the worker prints text");
        let line = line.unwrap_or_else(|| {
            panic!("{} ended: is it a build with `bench-billing --worker`?", self.program.display())
        });
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(pairs: impl IntoIterator<Item = f64>) -> Verdict {
        Ratio::of(&pairs.into_iter().map(|this| (this, 1.0)).collect::<Vec<_>>()).verdict()
    }

    #[test]
    fn interval_decides_about_five_percent() {
        assert_eq!(verdict([1.0, 1.01, 0.99, 1.0, 1.01, 0.99]), Verdict::Passed);
        assert_eq!(verdict([0.5, 0.51, 0.49, 0.5, 0.51, 0.49]), Verdict::Passed);
        assert_eq!(verdict([1.1, 1.11, 1.09, 1.1, 1.11, 1.09]), Verdict::Lost);
        assert_eq!(verdict([1.0, 1.5, 0.7, 1.0, 1.3, 0.8]), Verdict::Undecided);
        assert_eq!(verdict([1.0]), Verdict::Undecided);
    }

    #[test]
    fn interval_has_textbook_width() {
        // Logarithms 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, t(2) 4.303, half width 0.2484.
        let pairs: Vec<_> = [0.1_f64, 0.2, 0.3].iter().map(|log| (log.exp(), 1.0)).collect();
        let ratio = Ratio::of(&pairs);
        assert!((ratio.estimate.ln() - 0.2).abs() < 1e-9, "{ratio}");
        assert!((ratio.high.ln() - 0.2 - 0.248_4).abs() < 1e-4, "{ratio}");
    }
}
