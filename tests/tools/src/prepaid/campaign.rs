//! One campaign from its start to its result.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sea_orm::{ConnectionTrait as _, Statement};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use billing_test_support::Db;

use super::{
    Options, Report, checks,
    customers::{self, Customers},
    receivers::{Receivers, SECRET},
    record::{Outage, Record},
};
use crate::faults::{
    self,
    daemons::{CLOCK, Daemons, Setup},
    fleet::HOUR,
    injections::Injector,
    server::Server,
};

/// The hours of the policy in a campaign: an episode is over soon.
pub(super) const GRACE: i64 = 6;
pub(super) const LEVELS: [i64; 3] = [24, 6, 1];
/// The hours from which a new episode begins: 1.25 times the highest level.
pub(super) const RECOVERED: i64 = 30;
/// The interval of billing that the policy expects, in real seconds. It is twice as short, so that a busy host is no outage.
pub(super) const BILLING_SECONDS: u32 = 2;
/// The longest time for what a campaign waits for.
const TIMEOUT: Duration = Duration::from_mins(2);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const OUTAGE_MS: std::ops::Range<u64> = 3_000..12_000;
const BETWEEN_OUTAGES_MS: std::ops::Range<u64> = 12_000..25_000;
/// For how long faults follow each other, and how long none follows then: no one is suspended while billing does not work.
const FAULTS: Duration = Duration::from_secs(5);
const CALM: Duration = Duration::from_secs(10);

/// Runs a campaign: faults for as long as the options say, then none until every event is delivered, and then the count.
///
/// The daemons' logs are kept if the options request it and anything is found, and their path is printed.
///
/// # Panics
/// If the campaign itself cannot continue.
pub async fn run(options: &Options) -> Report {
    let folder = tempfile::Builder::new().prefix("billing-prepaid-").tempdir().expect("a folder is made");
    let server = Server::start(options.engine, &options.faults).await;
    let record = Arc::new(Record::new(customers::begin(&server.db).await));
    let rng = StdRng::seed_from_u64(options.seed);
    let mut customers = Customers::found(&server.db, &record, rng).await;
    let receivers = Receivers::start(&record, options.seed);
    if options.has_slow_receivers {
        receivers.slow_down();
    }
    for sabotage in &options.sabotage {
        server.db.execute(sabotage).await;
    }
    let daemons = Daemons::start(&Setup {
        program: &options.daemon,
        folder: folder.path(),
        configuration: &configuration(&receivers),
        clock: CLOCK,
        environment: &environment(options),
        urls: &vec![server.url(); options.engine.daemons()],
    })
    .await;
    let injector = Injector::new(&server, &daemons);
    let (stop, stopped) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let seed = options.seed;
    let campaign = async {
        let time = async {
            sleep(options.duration).await;
            until_enough(&record, options.least).await;
            stop.send_replace(true);
        };
        let faults = async {
            if !options.faults.is_empty() {
                inject_now_and_then(&injector, options, &stopped).await;
            }
        };
        let outages = async {
            if options.has_outages {
                fail_now_and_then(&daemons, &record, seed.wrapping_add(2), &stopped).await;
            }
        };
        let moods = async {
            if options.has_failing_receivers {
                receivers.vary(seed.wrapping_add(3), &stopped).await;
            }
        };
        let quarter = HOUR * i64::from(options.hours_per_second) / 4;
        let clock = customers::tick(&server.db, &record, quarter, &stopped);
        tokio::join!(time, faults, outages, moods, customers.live(&stopped), clock);
        if let Some((_, proxy)) = &server.postgres {
            proxy.relent();
        }
        customers.pay_all().await;
        let settled = settle(&server.db, &record).await;
        end.send_replace(true);
        settled
    };
    let (unsettled, ()) = tokio::join!(campaign, daemons.supervise(&ended));
    let (exits, stuck) = daemons.stop().await;

    let mut report = begin_report(options, &customers, &record, &injector.counts());
    if let Some(unsettled) = unsettled {
        report.violate(format!("after {} s without faults: {unsettled}", TIMEOUT.as_secs()));
    }
    for _ in 0..stuck {
        report.violate("a daemon did not end after SIGTERM".to_owned());
    }
    let entries = std::mem::take(&mut *record.entries());
    checks::count(&mut report, &server.db, &entries, options).await;
    if options.keep_logs && !report.is_clean() {
        let logs = folder.keep();
        report.find(format!("daemons that ended unexpectedly: {exits:?}; logs: {}", logs.display()));
    }
    report
}

/// What was done and injected.
fn begin_report(
    options: &Options,
    customers: &Customers<'_>,
    record: &Record,
    counts: &faults::Report,
) -> Report {
    Report {
        seed: options.seed,
        customers: customers.count(),
        payments: customers.payments,
        outages: record.generation() as u64,
        kills: counts.kills,
        pauses: counts.pauses,
        cuts: counts.cuts,
        lost_commits: counts.lost_commits,
        ..Report::default()
    }
}

/// The environment of the daemons, in addition to the campaign's clock.
fn environment(options: &Options) -> Vec<(String, String)> {
    let rate = options.hours_per_second;
    let variable = |name: &str, value: u32| (name.to_owned(), value.to_string());
    let mut environment = vec![
        variable("BILLING_CLOCK_RATE", 3_600 * rate),
        variable("BILLING_INTERVAL_SECONDS", 3_600 * rate * BILLING_SECONDS),
    ];
    environment.extend_from_slice(&options.environment);
    environment
}

/// All jobs every second, and the two receivers.
fn configuration(receivers: &Receivers) -> String {
    let retry = r#"retry = { max-attempts = 5, backoff = "1s", max-backoff = "1s" }"#;
    format!(
        r#"
[daemon]
panel-billing = "off"
lease-ttl = "3s"
drain-timeout = "5s"

[[job]]
name = "billing"
kind = "billing"
schedule = {{ every = "1s" }}
run-at-start = true
{retry}
params = {{ max-catch-up-hours = 100000, spike-factor = "0", hand-back-after = "6s" }}

[[job]]
name = "prepaid"
kind = "prepaid"
schedule = {{ every = "1s" }}
run-at-start = true
{retry}
params = {{ mode = "enforce", notice-hours = {LEVELS:?}, grace = "{GRACE}h" }}

[[job]]
name = "deliver"
kind = "deliver"
schedule = {{ every = "1s" }}
run-at-start = true
{retry}

[[job.params.endpoint]]
name = "panel"
kind = "webhook"
url = "{panel}"
secrets = ["{SECRET}"]
types = ["billing.service.*"]
needed = true

[[job.params.endpoint]]
name = "mail"
kind = "mail"
smtp = "{mail}"
from = "Example Hosting <billing@hosting.example>"
types = ["billing.wallet.*"]
needed = true
"#,
        panel = receivers.panel.url(),
        mail = receivers.mails.url(),
    )
}

/// Injects faults for a while, again and again.
async fn inject_now_and_then(injector: &Injector<'_>, options: &Options, stop: &watch::Receiver<bool>) {
    let mut seed = options.seed;
    while !*stop.borrow() {
        seed = seed.wrapping_add(100);
        let (end, ended) = watch::channel(false);
        let time = async {
            let _ = timeout(FAULTS, stop.clone().wait_for(|is_over| *is_over)).await;
            end.send_replace(true);
        };
        tokio::join!(time, injector.inject(&options.faults, seed, &ended));
        let _ = timeout(CALM, stop.clone().wait_for(|is_over| *is_over)).await;
    }
}

/// Takes all daemons down for a while, again and again.
async fn fail_now_and_then(daemons: &Daemons, record: &Record, seed: u64, stop: &watch::Receiver<bool>) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !*stop.borrow() {
        let pause = Duration::from_millis(rng.random_range(BETWEEN_OUTAGES_MS));
        let _ = timeout(pause, stop.clone().wait_for(|is_over| *is_over)).await;
        if *stop.borrow() {
            return;
        }
        daemons.begin_outage().await;
        let from = (record.clock.latest(), Instant::now());
        sleep(Duration::from_millis(rng.random_range(OUTAGE_MS))).await;
        // Noted before the first daemon starts: what arrives from here on was sent by a daemon that started after it.
        let outage = Outage { from, until: (record.clock.earliest(), Instant::now()) };
        record.entries().outages.push(outage);
        daemons.end_outage().await;
    }
}

/// Waits until so many organizations were suspended and resumed, up to a time limit.
async fn until_enough(record: &Record, least: u64) {
    let began = Instant::now();
    while began.elapsed() < TIMEOUT {
        if record.carried_out(true).min(record.carried_out(false)) >= least {
            return;
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Lets the clock run fast until every order is acknowledged and every delivery is decided. Returns what is not, after a while.
async fn settle(db: &Db, record: &Record) -> Option<String> {
    let (stop, stopped) = watch::channel(false);
    let waiting = async {
        let began = Instant::now();
        let mut rest = None;
        while began.elapsed() < TIMEOUT {
            rest = unsettled(db).await;
            if rest.is_none() {
                break;
            }
            sleep(POLL_INTERVAL).await;
        }
        stop.send_replace(true);
        rest
    };
    tokio::join!(waiting, customers::tick(db, record, 2 * HOUR, &stopped)).0
}

async fn unsettled(db: &Db) -> Option<String> {
    let sql = "SELECT CAST((SELECT count(*) FROM billing_standings
                             WHERE desired = 'suspended'
                                OR order_number > 0 AND order_number IS DISTINCT FROM acked_order) AS bigint) AS orders,
                      CAST((SELECT count(*) FROM billing_deliveries WHERE status = 'pending') AS bigint) AS pending";
    let row = db.admin().query_one_raw(Statement::from_string(db.backend(), sql)).await.ok()??;
    let number = |column| row.try_get::<i64>("", column).unwrap_or(i64::MAX);
    let (orders, pending) = (number("orders"), number("pending"));
    (orders > 0 || pending > 0).then(|| {
        format!("{orders} organizations are not resumed or their order is not acknowledged; {pending} deliveries are pending")
    })
}
