//! One campaign on a cluster from its start to its result.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use billing_test_support::{Db, Login, Panel, Postgres};
use rand::{SeedableRng as _, rngs::StdRng};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::sync::watch;

use super::{
    Options, Report,
    injections::Injector,
    operator::Operator,
    relay::{Network, Relay},
    servers::Servers,
    share::Way,
    workload::Workload,
};
use crate::faults::{
    self,
    campaign::{all_billed, count},
    daemons::{Daemons, Setup},
    fleet::{self, Fleet},
    server::Server,
};

/// What differs from the defaults: the schedule, and that hours of the past are charged as they are found.
const CONFIGURATION: &str = r#"
[daemon]
panel-billing = "off"

[[job]]
name = "billing"
kind = "billing"
schedule = { every = "1s" }
run-at-start = true
params = { spike-factor = "0" }

[[job]]
name = "heartbeat"
kind = "heartbeat"
schedule = { every = "15s" }
scope = "node"
run-at-start = true
"#;

/// The clock by which billing is due: the true time, until the campaign stops it.
const CLOCK: &str = "SELECT least(now_micros, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now FROM campaign_clock";
const DAEMONS: usize = 6;
/// How long the daemons may take to bill everything in the end.
const SETTLE_TIMEOUT: Duration = Duration::from_mins(2);

/// Runs a campaign: faults for as long as the options say, then none until everything is billed, and then the count.
///
/// The logs are kept if anything is found, and their path is printed.
///
/// # Panics
/// If the campaign itself cannot continue.
pub async fn run(options: &Options) -> Report {
    let servers = Servers::start(options.synchronous).await;
    let database = Db::on_server(Postgres::of_caller(servers.port), Panel::G3, Login::Billing).await;
    let server = Server::of(database);
    server.add_tables().await;
    let Fleet { journal, .. } = Fleet::found(&server, StdRng::seed_from_u64(options.seed), 0).await;
    let db = &server.db;
    db.execute(&format!("UPDATE campaign_clock SET now_micros = {}", i64::MAX)).await;

    let network = Arc::new(Network::default());
    let mut relays = Vec::new();
    let mut urls = Vec::new();
    for number in 0..DAEMONS {
        let (url, used) = way(&servers, db, number, &network).await;
        urls.push(url);
        relays.extend(used);
    }
    let daemons = Daemons::start(&Setup {
        program: &options.daemon,
        folder: &daemons_folder(&servers),
        configuration: CONFIGURATION,
        clock: CLOCK,
        environment: &[],
        urls: &urls,
    })
    .await;

    let workload = Workload::new(journal);
    let operator = Operator::default();
    let injector = Injector {
        servers: &servers,
        daemons: &daemons,
        network: &network,
        workload: &workload,
        db,
        operator: &operator,
        verbose: options.verbose,
    };
    let (stop, stopped) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let campaign = async {
        let faults = async {
            let episodes = injector.inject(&options.faults, options.seed, options.duration).await;
            stop.send_replace(true);
            episodes
        };
        let (episodes, ()) = tokio::join!(faults, panel(&workload, &servers, db, options.seed, &stopped));
        let now = fleet::real_now();
        db.execute(&format!("UPDATE campaign_clock SET now_micros = {now}")).await;
        let finished = all_billed(db, now, SETTLE_TIMEOUT).await;
        end.send_replace(true);
        (episodes, now, finished)
    };
    let ((episodes, now, finished), (), ()) =
        tokio::join!(campaign, daemons.supervise(&ended), operator.work(&daemons, db, &ended));
    let (exits, stuck) = daemons.stop().await;

    let mut counted = faults::Report { seed: options.seed, ..Default::default() };
    if !finished {
        counted.violate(format!("no run billed everything within {} s", SETTLE_TIMEOUT.as_secs()));
    }
    for _ in 0..stuck {
        counted.violate("a daemon did not end after SIGTERM".to_owned());
    }
    for (exit, times) in exits {
        counted.violate(format!("a daemon ended unexpectedly {times} times with {exit}"));
    }
    let (accepted, violations) = operator.end();
    for violation in violations {
        counted.violate(violation);
    }
    if options.synchronous && accepted > 0 {
        counted.violate(format!("{accepted} halts, although no commit can be lost"));
    }
    let done = workload.end(db).await;
    counted.top_ups = done.top_ups;
    if options.synchronous && done.lost > 0 {
        counted.violate(format!("{} confirmed transactions are missing", done.lost));
    }
    count(&mut counted, db, &done.journal, now).await;
    let mut report = Report::new(counted, &episodes);
    report.lost_by_cluster = done.lost;
    report.accepted_restores = accepted;
    if options.keep_logs || !report.is_clean() {
        servers.keep_logs();
        report.findings.push(format!("the logs are in {}", servers.folder().display()));
    }
    report
}

/// The URL of the daemon with this number, and the relays that it uses: half of the daemons connect to HAProxy, the others to the
/// first node that accepts writes.
async fn way(servers: &Servers, db: &Db, number: usize, network: &Arc<Network>) -> (String, Vec<Relay>) {
    let targets = if number.is_multiple_of(2) {
        vec![servers.port]
    } else {
        servers.nodes.iter().map(|node| node.port).collect()
    };
    let mut relays = Vec::new();
    for target in targets {
        relays.push(Relay::start(target, network).await.expect("a port is free"));
    }
    let hosts: Vec<String> = relays.iter().map(|relay| format!("127.0.0.1:{}", relay.port())).collect();
    let url = db.url.replace(&format!("127.0.0.1:{}", servers.port), &hosts.join(","));
    (url, relays)
}

/// The panel's writes: through HAProxy, and directly to whichever node accepts them, as half of the daemons do.
async fn panel(workload: &Workload, servers: &Servers, db: &Db, seed: u64, stop: &watch::Receiver<bool>) {
    let url = db.url_for(Login::Admin);
    let address = PgConnectOptions::from_str(&url).expect("a URL of ours").ssl_mode(PgSslMode::Disable);
    let [first, second, third] = [0, 1, 2].map(|node: usize| address.clone().port(servers.nodes[node].port));
    let haproxy = address.port(servers.port);
    tokio::join!(
        workload.create(haproxy.clone(), Way::Proxy, seed, stop),
        workload.create(first, Way::Direct, seed.wrapping_add(1), stop),
        workload.create(second, Way::Direct, seed.wrapping_add(2), stop),
        workload.create(third, Way::Direct, seed.wrapping_add(3), stop),
        workload.top_up(haproxy, seed.wrapping_add(4), stop),
    );
}

fn daemons_folder(servers: &Servers) -> std::path::PathBuf {
    let folder = servers.folder().join("daemons");
    std::fs::create_dir(&folder).expect("a folder in a folder of ours is made");
    folder
}
