//! One campaign from its start to its result.

use std::time::{Duration, Instant};

use rand::{SeedableRng as _, rngs::StdRng};
use sea_orm::{ConnectionTrait, Statement};
use tokio::{sync::watch, time::sleep};

use super::{
    Options, Report,
    daemons::{self, Daemons, Setup},
    fleet::{self, Fleet, Micros},
    injections::Injector,
    journal::Journal,
    model, panel,
    server::Server,
    tables::Tables,
};
use crate::Engine;
use billing_test_support::Db;

/// The time limit of a campaign that waits for runs.
const LONGEST: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Runs a campaign: faults for as long as the options say, then none until everything is billed, and then the count.
///
/// The daemons' logs are kept if the options request it and anything is found, and their path is printed.
///
/// # Panics
/// If the campaign itself cannot continue.
pub async fn run(options: &Options) -> Report {
    let folder = tempfile::Builder::new().prefix("billing-faults-").tempdir().expect("a folder is made");
    let server = Server::start(options.engine, &options.faults).await;
    let rng = StdRng::seed_from_u64(options.seed);
    let mut fleet = Fleet::found(&server, rng, options.instances).await;
    if options.engine == Engine::Postgres && options.panel {
        panel::install_guard(&server).await;
    }
    for sabotage in &options.sabotage {
        server.db.execute(sabotage).await;
    }
    let daemons = Daemons::start(&Setup {
        program: &options.daemon,
        folder: folder.path(),
        configuration: daemons::CONFIGURATION,
        clock: daemons::CLOCK,
        environment: &options.environment,
        urls: &vec![server.url(); options.engine.daemons()],
    })
    .await;
    let injector = Injector::new(&server, &daemons);

    let (stop, stopped) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let (seed, other_seed) = (options.seed, options.seed.wrapping_add(1));
    let faults = async {
        let faults = &options.faults;
        if !faults.is_empty() {
            tokio::join!(
                injector.inject(faults, seed, &stopped),
                injector.inject(faults, other_seed, &stopped)
            );
        }
    };
    let panel = async {
        match options.engine {
            Engine::Postgres if options.panel => panel::bill(&server, seed.wrapping_add(2), &stopped).await,
            _ => panel::Billed::default(),
        }
    };
    let campaign = async {
        let time = async {
            sleep(options.duration).await;
            until_so_many_runs(&server.db, options.runs).await;
            stop.send_replace(true);
        };
        let ((), (), (), (), billed) = tokio::join!(
            time,
            faults,
            fleet.live(options.pace_ms.clone(), &stopped),
            fleet::tick(&server, &stopped),
            panel
        );
        if let Some((_, proxy)) = &server.postgres {
            proxy.relent();
        }
        let now = fleet::rest(&server.db).await;
        let finished = all_billed(&server.db, now, options.settle_timeout).await;
        end.send_replace(true);
        (now, finished, billed)
    };
    let ((now, finished, billed), ()) = tokio::join!(campaign, daemons.supervise(&ended));
    let (exits, stuck) = daemons.stop().await;

    let mut report = injector.counts();
    let Fleet { journal, report: done, .. } = fleet;
    report.seed = options.seed;
    report.top_ups = done.top_ups;
    report.plan_changes = done.plan_changes;
    report.creations = done.creations;
    report.deletions = done.deletions;
    report.set_backs = done.set_backs;
    report.panel_attempts = billed.attempts;
    report.panel_refused = billed.refused;
    report.panel_charged = billed.charged;
    report.panel_overwrites_refused = billed.overwrites_refused;
    if !finished {
        report.violate(format!(
            "no run of all daemons billed everything within {} s",
            options.settle_timeout.as_secs()
        ));
    }
    for _ in 0..stuck {
        report.violate("a daemon did not end after SIGTERM".to_owned());
    }
    count(&mut report, &server.db, &journal, now).await;
    if options.keep_logs && !report.is_clean() {
        let logs = folder.keep();
        report.find(format!("daemons that ended unexpectedly: {exits:?}; logs: {}", logs.display()));
    }
    report
}

/// Adds to `report` what the model and the audit find in the database at `now`, the fleet's time.
pub(crate) async fn count(report: &mut Report, db: &Db, journal: &Journal, now: Micros) {
    let tables = Tables::read(db).await.expect("the final tables are read");
    model::check(report, journal, &tables, now);
    let audit = billing_jobs::audit::audit(db.admin()).await.expect("the audit reads its tables");
    for violation in audit.violations {
        report.violate(format!("audit: {}: {}", violation.check, violation.detail));
    }
}

/// Waits until this many runs of billing have ended, up to a time limit.
async fn until_so_many_runs(db: &Db, runs: u64) {
    let sql = "SELECT count(*) AS n FROM scheduler_runs WHERE job = 'billing'";
    let query = Statement::from_string(db.backend(), sql);
    let begun = Instant::now();
    while runs > 0 && begun.elapsed() < LONGEST {
        let row = db.admin().query_one_raw(query.clone()).await.ok().flatten();
        if row
            .and_then(|row| row.try_get::<i64>("", "n").ok())
            .is_some_and(|ended| ended.unsigned_abs() >= runs)
        {
            return;
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Waits until two runs in a row finished that billed everything up to `now`, the fleet's time.
pub(crate) async fn all_billed(db: &Db, now: Micros, settle_timeout: Duration) -> bool {
    let since = fleet::real_now();
    let started = Instant::now();
    let (begun, as_of) = match db.backend() {
        sea_orm::DbBackend::Sqlite => ("started_at".to_owned(), "details ->> '$.as_of'"),
        _ => ("CAST(extract(epoch FROM started_at) * 1000000 AS bigint)".to_owned(), "details ->> 'as_of'"),
    };
    let sql = format!(
        "SELECT count(*) AS n FROM scheduler_runs
          WHERE job = 'billing' AND status = 'done' AND {begun} >= {since} AND {as_of} IS NOT NULL"
    );
    let query = Statement::from_string(db.backend(), sql);
    debug_assert!(now > 0, "the clock has stopped");
    while started.elapsed() < settle_timeout {
        let row = db.admin().query_one_raw(query.clone()).await.ok().flatten();
        if row.and_then(|row| row.try_get::<i64>("", "n").ok()).is_some_and(|runs| runs >= 2) {
            return true;
        }
        sleep(POLL_INTERVAL).await;
    }
    false
}
