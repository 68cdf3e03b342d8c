//! The plans of the queries that read a whole fleet: their work grows as the tables do, on a panel without an index that is not a key.

use std::fs;

use billing_jobs::audit::queries;
use billing_test_support::{Db, Login, Panel, Postgres, connect, eventually, skipped};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement};
use serde_json::Value;

use crate::daemon::{daemon, fetch, job};

const INSTANCES: u32 = 2_000;
const HOURS: u32 = 2;
/// A linear plan reads each row a few times. The smallest quadratic one reads every instance for each wallet: 800,000 rows.
const MOST_ROWS: f64 = 600_000.0;
/// The executions of a subquery that no fleet causes.
const FEW: f64 = 100.0;

/// A check of each charge that reads the cycles for each of them, because no index knows the lengths.
const QUADRATIC: &str = "SELECT 1 FROM billing_charges c
     WHERE c.hours > 1 OR EXISTS (SELECT 1 FROM vps_billing_cycles y
                                   WHERE length(y.status) < length(c.currency))";

/// Reads the wallets once for each wallet.
const JOIN_WITHOUT_INDEX: &str = "SELECT 1 FROM wallets a CROSS JOIN wallets b ON a.balance < b.balance";

/// A query that PostgreSQL executed.
pub(crate) struct Executed {
    pub(crate) text: String,
    pub(crate) plan: Value,
}

impl Executed {
    /// What makes the plan quadratic.
    fn fault(&self) -> Option<String> {
        let rows = rows(&self.plan);
        if rows > MOST_ROWS {
            return Some(format!("it reads {rows} rows"));
        }
        scan_for_each_row(&self.plan, false).map(|table| format!("it reads {table} for each row"))
    }
}

/// The children of a node.
fn children(node: &Value) -> &[Value] {
    node["Plans"].as_array().map_or(&[], Vec::as_slice)
}

/// The rows that all nodes together return or skip.
pub(crate) fn rows(node: &Value) -> f64 {
    let figure = |key: &str| node[key].as_f64().unwrap_or_default();
    let of_one = figure("Actual Rows")
        + figure("Rows Removed by Filter")
        + figure("Rows Removed by Join Filter")
        + figure("Rows Removed by Index Recheck");
    figure("Actual Loops") * of_one + children(node).iter().map(rows).sum::<f64>()
}

/// The table that is read from end to end for each row of another.
fn scan_for_each_row(node: &Value, in_subplan: bool) -> Option<String> {
    let in_subplan = in_subplan || node["Parent Relationship"] == "SubPlan";
    if in_subplan && node["Node Type"] == "Seq Scan" && node["Actual Loops"].as_f64() > Some(FEW) {
        return node["Relation Name"].as_str().map(str::to_owned);
    }
    children(node).iter().find_map(|child| scan_for_each_row(child, in_subplan))
}

/// A database on a server that logs the plan of each query.
pub(crate) struct Observed {
    server: &'static Postgres,
    pub(crate) db: Db,
    /// A connection that began before the plans are logged.
    unobserved: DatabaseConnection,
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.server.take_away();
    }
}

impl Observed {
    pub(crate) async fn start() -> Option<Self> {
        let server = Postgres::private().await;
        let db = Db::on_server(server, Panel::G3, Login::Owner).await;
        let unobserved = connect(&db.url_for(Login::Admin)).await;
        let observed = Self { server, db, unobserved };
        if observed.db.admin().execute_unprepared("LOAD 'auto_explain'").await.is_err() {
            skipped("the plans of PostgreSQL: its module auto_explain is not installed");
            return None;
        }
        // The server must change neither statistics nor plans meanwhile.
        observed.db.execute("ALTER SYSTEM SET autovacuum = off").await;
        observed.db.execute("SELECT pg_reload_conf()").await;
        Some(observed)
    }

    /// Logs the plans of every session that begins from now on, which has little memory for what it joins.
    pub(crate) async fn observe(&self) {
        let name = fetch(&self.db, "SELECT current_database()").await;
        let settings = [
            "session_preload_libraries = 'auto_explain'",
            "auto_explain.log_min_duration = 0",
            "auto_explain.log_format = 'json'",
            "auto_explain.log_analyze = on",
            "auto_explain.log_timing = off",
            "work_mem = '64kB'",
            "jit = off",
        ];
        // In one transaction: a session that begins meanwhile has all of them or none.
        self.db
            .execute(&settings.map(|setting| format!("ALTER DATABASE {name} SET {setting};")).concat())
            .await;
    }

    /// The queries that were logged since the last call. A query is logged at its end, which its client does not wait for:
    /// first each session becomes idle.
    pub(crate) async fn executed(&self, seen: &mut usize) -> Vec<Executed> {
        const PLAN: &str = "  plan:\n";
        const BUSY: &str = "SELECT 1 FROM pg_stat_activity
                             WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'";
        let is_idle = async || {
            let busy = self.unobserved.query_one_raw(Statement::from_string(DbBackend::Postgres, BUSY)).await;
            busy.expect("the server answers").is_none().then_some(())
        };
        eventually("each session is idle", is_idle).await;
        let log = fs::read(self.server.folder().join("log")).expect("the server writes a log");
        let log = String::from_utf8_lossy(&log[*seen..]);
        let (mut rest, mut executed) = (&*log, Vec::new());
        while let Some((_, after)) = rest.split_once(PLAN) {
            let json: String = after.lines().take_while(|line| line.starts_with('\t')).collect();
            match serde_json::from_str::<Value>(&json) {
                Ok(entry) => {
                    let text = entry["Query Text"].as_str().expect("a text").to_owned();
                    executed.push(Executed { text, plan: entry["Plan"].clone() });
                }
                Err(error) => {
                    assert!(!after.contains(PLAN), "{error} in {json}");
                    break;
                }
            }
            rest = after;
        }
        *seen += log.len() - rest.len();
        executed
    }
}

/// Statistics of a fleet of one instance, as if the fleet had grown since then.
async fn analyze_small_fleet(db: &Db) {
    db.seed_ledger(1, 1).await;
    db.execute("ANALYZE").await;
    db.execute(
        "SET session_replication_role = replica;
         DELETE FROM payment_transactions; DELETE FROM vps_billing_cycles; DELETE FROM vps_instances;
         DELETE FROM wallets; DELETE FROM organizations; DELETE FROM users; DELETE FROM vps_plans;
         DELETE FROM scheduler_runs; DELETE FROM billing_batches; DELETE FROM billing_charges;
         DELETE FROM billing_meters; DELETE FROM billing_wallet_openings;
         RESET session_replication_role",
    )
    .await;
}

/// More plans than a panel has, a hold of each instance, and a customer who was notified and suspended of each organization.
async fn seed_plans_and_holds(db: &Db) {
    db.execute(
        "INSERT INTO billing_standings
             (organization_id, state, since, watched, episode, level, burn, owed, runway_hours, order_number, desired,
              evaluated_at)
         SELECT id, 'suspended', now(), true, 0, -1, 1, 1, -1, 7, 'suspended', now() FROM organizations;
         INSERT INTO billing_events (id, type, organization_id, endpoints, body, created_at)
         SELECT gen_random_uuid(), 'billing.wallet.low', id, 1, '{}', now() FROM organizations, generate_series(1, 3);
         INSERT INTO billing_notices
         SELECT organization_id, 0, row_number() OVER (PARTITION BY organization_id), id, false, now(), now() FROM billing_events;
         INSERT INTO billing_deliveries (event_id, endpoint, organization_id, needed, status, next_at, sent_at)
         SELECT id, 'mail', organization_id, true, 'sent', now(), now() FROM billing_events",
    )
    .await;
    db.execute(
        "INSERT INTO vps_plans (name, provider_plan_id, base_price)
         SELECT 'plan', 'plan-' || n, n FROM generate_series(1, 400) AS n;
         INSERT INTO billing_holds (instance_id, organization_id, label, reason, hours_due, opened_at, seen_at)
         SELECT id, organization_id, label, 'insufficient_balance', 1, now(), now() FROM vps_instances",
    )
    .await;
}

async fn check_commands(is_analyzed: bool) {
    let Some(observed) = Observed::start().await else { return };
    let db = &observed.db;
    if !is_analyzed {
        analyze_small_fleet(db).await;
    }
    db.seed_ledger(INSTANCES, HOURS).await;
    seed_plans_and_holds(db).await;
    db.drop_optional_indexes().await;
    if is_analyzed {
        db.execute("ANALYZE").await;
    }
    observed.observe().await;
    let program = daemon(db, &[&job("billing", "billing", "1h", "")]);
    let mut seen = 0;
    observed.executed(&mut seen).await;

    db.connect().await.execute_unprepared(QUADRATIC).await.expect("a query");
    let quadratic = observed.executed(&mut seen).await;
    assert!(quadratic.iter().any(|query| query.fault().is_some()), "a quadratic plan is found");

    let forget = "TRUNCATE billing_meters, billing_wallet_openings";
    let restore = "UPDATE vps_instances SET last_billed_at = last_billed_at - interval '1 hour';
                   DELETE FROM vps_billing_cycles";
    for (before, command) in [
        ("", "audit --json"),
        ("", "status"),
        ("", "doctor"),
        ("", "holds list"),
        ("", "charges explain vps-7"),
        ("", "bill --dry-run"),
        (forget, "adopt"),
        (restore, "release"),
    ] {
        // A run finds the rows of a batch by index, also with old statistics, but not on a panel without an index.
        if command.starts_with("bill") && !is_analyzed {
            continue;
        }
        if !before.is_empty() {
            db.execute(before).await;
        }
        observed.executed(&mut seen).await;
        let ended = program.run(command).await;
        assert!(matches!(ended.code, Some(0 | 1)), "{command}: {}", ended.text());
        let executed = observed.executed(&mut seen).await;
        assert!(executed.len() > 3, "{command} executed {} queries", executed.len());
        for query in &executed {
            let Executed { text, plan } = query;
            assert_eq!(query.fault(), None, "{command}: {text}\n{plan:#}");
        }
    }
    assert_eq!(
        fetch(db, "SELECT count(*) FROM vps_billing_cycles").await,
        INSTANCES.to_string(),
        "release repairs cycles"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_read_each_table_once() {
    check_commands(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_statistics_change_no_complexity() {
    check_commands(false).await;
}

/// A step of a plan of SQLite.
struct Step {
    id: i32,
    parent: i32,
    detail: String,
}

/// The steps that read a whole table for each row of another.
fn nested_scans(steps: &[Step]) -> Vec<&str> {
    let is_scan = |step: &Step| step.detail.starts_with("SCAN ") && !step.detail.contains("VIRTUAL TABLE");
    let is_repeated = |step: &Step| {
        let outer =
            steps.iter().take_while(|other| other.id != step.id).filter(|other| other.parent == step.parent);
        let loops = |other: &Step| {
            is_scan(other) || (other.detail.starts_with("SEARCH ") && !other.detail.contains("(rowid=?)"))
        };
        outer.into_iter().any(loops)
    };
    let is_correlated = |step: &Step| {
        let mut parent = step.parent;
        while let Some(above) = steps.iter().find(|other| other.id == parent) {
            if above.detail.starts_with("CORRELATED") {
                return true;
            }
            parent = above.parent;
        }
        false
    };
    let nested = |step: &&Step| is_scan(step) && (is_repeated(step) || is_correlated(step));
    steps.iter().filter(nested).map(|step| step.detail.as_str()).collect()
}

async fn explain_query_plan(db: &Db, sql: &str) -> Vec<Step> {
    let explain = format!("EXPLAIN QUERY PLAN {}", sql.replace("$1", "'billing'"));
    let rows = db.admin().query_all_raw(Statement::from_string(DbBackend::Sqlite, explain)).await;
    let step = |row: &sea_orm::QueryResult| Step {
        id: row.try_get("", "id").expect("a number"),
        parent: row.try_get("", "parent").expect("a number"),
        detail: row.try_get("", "detail").expect("a text"),
    };
    rows.expect("the query is valid").iter().map(step).collect()
}

#[tokio::test]
async fn sqlite_audit_has_no_nested_scans() {
    // Without statistics, as the daemon leaves the file, and with those of a fleet.
    for (instances, hours) in [(0, 0), (200, 50)] {
        let db = Db::sqlite().await;
        db.drop_optional_indexes().await;
        if instances > 0 {
            db.seed_ledger(instances, hours).await;
            db.execute("ANALYZE").await;
        }
        for (check, sql) in queries(DbBackend::Sqlite) {
            let steps = explain_query_plan(&db, &sql).await;
            assert_eq!(nested_scans(&steps), [""; 0], "{check} with {instances} instances:\n{sql}");
        }
        for (sql, inner) in [(QUADRATIC, "SCAN y"), (JOIN_WITHOUT_INDEX, "SCAN b")] {
            let steps = explain_query_plan(&db, sql).await;
            let nested = nested_scans(&steps);
            assert!(nested.len() == 1 && nested[0].starts_with(inner), "{sql}: {nested:?}");
        }
    }
}
