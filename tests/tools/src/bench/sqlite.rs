//! The benchmark on SQLite: three files on the disk. The floor and the original's way have no driver's thread in between.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash as _, Hasher as _},
    path::PathBuf,
    time::Instant,
};

use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params, params_from_iter, types::Value};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::block_in_place};

use super::{Bench, Options, Waits, fleet};
use billing_test_support::migrate;

/// Tables to which ours only adds, with the column that numbers their rows.
const APPENDED: [(&str, &str); 4] = [
    ("billing_batches", "id"),
    ("payment_transactions", "rowid"),
    ("billing_charges", "batch_id"),
    ("vps_billing_cycles", "rowid"),
];
const BEGUN: [&str; 2] = ["billing_meters", "billing_wallet_openings"];
/// A number that no row has.
const NOTHING: i64 = 0;

pub(super) struct SqliteEngine {
    folder: TempDir,
    ours: Connection,
    floor: Connection,
    original: Connection,
    /// The last row of each table that ours adds to when it was last copied.
    copied: [i64; 4],
    /// The same at the beginning.
    history: [i64; 4],
}

impl SqliteEngine {
    pub(super) async fn seeded(options: &Options) -> Self {
        let folder = tempfile::Builder::new().prefix("billing-bench-").tempdir().expect("a folder is made");
        let mut files =
            ["ours", "floor", "original"].map(|name| folder.path().join(name).with_extension("db"));
        for file in &files {
            migrate(&url(file)).await;
        }
        let [ours, floor, original] = files.each_mut().map(|file| {
            let mut connection = open(file);
            seed(&mut connection, options.instances).expect("an empty database takes a fleet");
            connection
        });
        make_history(&ours, options.history).expect("a fleet takes a history");
        let history = APPENDED.map(|(table, column)| last(&ours, table, column));
        Self { folder, ours, floor, original, copied: history, history }
    }
}

fn url(file: &std::path::Path) -> String {
    format!("sqlite://{}?mode=rwc", file.display())
}

/// A connection with the settings of the daemon's connections.
fn open(file: &PathBuf) -> Connection {
    let connection = Connection::open(file).expect("a database of ours opens");
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000;
             PRAGMA cache_size = -32768; PRAGMA wal_autocheckpoint = 16384;",
        )
        .expect("SQLite knows these");
    connection
}

fn last(connection: &Connection, table: &str, column: &str) -> i64 {
    let sql = format!("SELECT coalesce(max({column}), {NOTHING}) FROM {table}");
    connection.query_row(&sql, [], |row| row.get(0)).expect("a table of ours has rows or none")
}

fn seed(connection: &mut Connection, instances: u32) -> rusqlite::Result<()> {
    let txn = connection.transaction()?;
    {
        let mut plans = txn.prepare(
            "INSERT INTO vps_plans (id, name, provider_plan_id, base_price, markup_price, backup_price_hourly)
             VALUES (?, ?, ?, ?, ?, ?)",
        )?;
        for (index, (name, base, markup, backup)) in fleet::PLANS.iter().enumerate() {
            let id = fleet::plan_id(index).to_string();
            plans.execute(params![id, name, format!("g6-{name}"), base, markup, backup])?;
        }
        let mut users = txn.prepare("INSERT INTO users (id, email, name) VALUES (?, ?, ?)")?;
        let mut owners =
            txn.prepare("INSERT INTO organizations (id, name, slug, owner_id) VALUES (?, ?, ?, ?)")?;
        let mut wallets =
            txn.prepare("INSERT INTO wallets (id, organization_id, balance) VALUES (?, ?, ?)")?;
        let mut rows = txn.prepare(
            "INSERT INTO vps_instances (id, organization_id, plan_id, provider_instance_id, label, status,
                                        backup_frequency, created_at, last_billed_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?;
        for organization in fleet::organizations(instances) {
            let (user, id) = (organization.user.to_string(), organization.id.to_string());
            let slug = &organization.slug;
            users.execute(params![user, format!("{slug}@example.com"), slug])?;
            owners.execute(params![id, slug, slug, user])?;
            wallets.execute(params![organization.wallet.to_string(), id, organization.balance])?;
            for instance in &organization.instances {
                let fleet::Instance { id: instance_id, plan, label, status, backups, created_ms, billed_ms } =
                    instance;
                let (created, billed) = (fleet::text(*created_ms), fleet::text(*billed_ms));
                let instance_id = instance_id.to_string();
                rows.execute(params![instance_id, id, plan, label, label, status, backups, created, billed])?;
            }
        }
    }
    txn.commit()
}

/// Charges of earlier hours, with their rows in the panel's tables, a whole fleet an hour.
fn make_history(connection: &Connection, rows: u32) -> rusqlite::Result<()> {
    if rows == 0 {
        return Ok(());
    }
    // A number made of hour and instance is at the same time the id of a row, so the ids rise with time. So do the numbers of the
    // batches, which are older than those of ours.
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         CREATE TEMP TABLE fleet AS
         SELECT row_number() OVER (ORDER BY id) - 1 AS n, id, organization_id AS organization, label,
                unixepoch(last_billed_at) - 36000000 AS start
           FROM vps_instances;
         CREATE TEMP TABLE past AS
         WITH RECURSIVE hours (h) AS (SELECT 0 UNION ALL SELECT h + 1 FROM hours
                                       WHERE h < ({rows} - 1) / (SELECT count(*) FROM fleet))
         SELECT printf('00000000-0000-4000-8000-%012x', h * 100000000 + n) AS ledger,
                printf('10000000-0000-4000-8000-%012x', h * 100000000 + n) AS cycle, id, organization, label,
                start + h * 3600 AS start, h
           FROM hours CROSS JOIN fleet ORDER BY h, n LIMIT {rows};
         INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate, amount, carry,
                                      payment_transaction_id, currency)
         SELECT start * 1000000, id, organization, h - 1000000, 1, 5000000, 68, 0, ledger, 'USD' FROM past;
         INSERT INTO payment_transactions (id, organization_id, amount, currency, payment_method, payment_provider, status,
                                           description, metadata)
         SELECT ledger, organization, -68, 'USD', 'wallet_debit', 'internal', 'completed',
                'VPS Hourly Billing - ' || label || ' (1h)', '{{\"balance_before\":100.0068,\"balance_after\":100.00}}'
           FROM past;
         INSERT INTO vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start, billing_period_end,
                                         hourly_rate, total_amount, status, payment_transaction_id, metadata)
         SELECT cycle, id, organization, strftime('%Y-%m-%dT%H:%M:%f000+00:00', start, 'unixepoch'),
                strftime('%Y-%m-%dT%H:%M:%f000+00:00', start + 3600, 'unixepoch'), 68, 68, 'billed', ledger,
                json_object('hours_charged', 1, 'elapsed_hours', 1, 'base_hourly_rate', 0.006849, 'backup_hourly_rate', 0,
                            'backup_frequency', 'none', 'vps_label', label)
           FROM past;
         DROP TABLE past;
         DROP TABLE fleet;
         COMMIT;
         PRAGMA wal_checkpoint(TRUNCATE);"
    ))
}

type Rows = Vec<Vec<Value>>;

fn rows(connection: &Connection, sql: &str) -> rusqlite::Result<Rows> {
    let mut query = connection.prepare(sql)?;
    let columns = query.column_count();
    let all = |row: &Row<'_>| (0..columns).map(|column| row.get(column)).collect();
    query.query_map([], all)?.collect()
}

/// A prepared statement, once for each row.
fn run_for_each(txn: &Transaction<'_>, sql: &str, rows: &Rows) -> rusqlite::Result<()> {
    let mut statement = txn.prepare(sql)?;
    for row in rows {
        statement.execute(params_from_iter(row))?;
    }
    Ok(())
}

impl SqliteEngine {
    fn copy(&mut self, hours: u32, first: bool) -> rusqlite::Result<f64> {
        let mut tables: Vec<(&str, Rows)> = Vec::new();
        for (number, (table, column)) in APPENDED.into_iter().enumerate() {
            let sql = format!("SELECT * FROM {table} WHERE {column} > {}", self.copied[number]);
            tables.push((table, rows(&self.ours, &sql)?));
            self.copied[number] = last(&self.ours, table, column);
        }
        for table in BEGUN.into_iter().filter(|_| first) {
            tables.push((table, rows(&self.ours, &format!("SELECT * FROM {table}"))?));
        }
        let balances = rows(&self.ours, "SELECT balance, id FROM wallets")?;
        let carries =
            rows(&self.ours, "SELECT billed_through, carry, seen_at, instance_id FROM billing_meters")?;
        let started = Instant::now();
        let txn = self.floor.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (table, rows) in tables.iter().filter(|(_, rows)| !rows.is_empty()) {
            let slots = vec!["?"; rows[0].len()].join(", ");
            run_for_each(&txn, &format!("INSERT INTO {table} VALUES ({slots})"), rows)?;
        }
        txn.execute(
            &format!(
                "UPDATE vps_instances SET last_billed_at = strftime('%Y-%m-%dT%H:%M:%f000+00:00', last_billed_at,
                                                                    '+{hours} hours'),
                        updated_at = strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')"
            ),
            [],
        )?;
        run_for_each(&txn, "UPDATE wallets SET balance = ?1 WHERE id = ?2", &balances)?;
        if !first {
            let sql = "UPDATE billing_meters SET billed_through = ?1, carry = ?2, seen_at = ?3 WHERE instance_id = ?4";
            run_for_each(&txn, sql, &carries)?;
        }
        txn.commit()?;
        Ok(started.elapsed().as_secs_f64())
    }
}

impl Bench for SqliteEngine {
    fn url(&self) -> String {
        url(&self.folder.path().join("ours.db"))
    }

    async fn used(&mut self) -> (f64, f64) {
        (0.0, 0.0)
    }

    async fn settle(&mut self) {
        for connection in [&self.ours, &self.floor, &self.original] {
            let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
            connection.query_row(checkpoint, [], |_| Ok(())).expect("no other process uses the file");
        }
    }

    async fn floor(&mut self, hours: u32, first: bool) -> f64 {
        block_in_place(|| self.copy(hours, first)).expect("the same rows are taken by the same tables")
    }

    async fn original(&mut self, sample: u32, hours: u32) -> f64 {
        block_in_place(|| -> rusqlite::Result<f64> {
            let query = format!("SELECT id FROM vps_instances ORDER BY created_at, id LIMIT {sample}");
            let due = rows(&self.original, &query)?;
            let started = Instant::now();
            for row in due {
                bill_as_the_original(&mut self.original, &row[0], hours)?;
            }
            Ok(started.elapsed().as_secs_f64())
        })
        .expect("the original bills")
    }

    async fn checksums(&mut self) -> [Vec<String>; 2] {
        let of = |connection: &Connection, from: [i64; 4]| {
            let queries = [
                format!(
                    "SELECT period_start, instance_id, organization_id, hours, rate, amount, carry, currency, by_panel
                       FROM billing_charges WHERE batch_id > {}",
                    from[2]
                ),
                "SELECT instance_id, organization_id, billed_through, carry, rate, backup_rate, rate_changes FROM billing_meters"
                    .to_owned(),
                "SELECT wallet_id, organization_id, opening_balance, opening_ledger FROM billing_wallet_openings".to_owned(),
                "SELECT instances, charges, held, hours, currencies FROM billing_batches".to_owned(),
                format!(
                    "SELECT organization_id, amount, currency, payment_method, payment_provider, status, description,
                            metadata
                       FROM payment_transactions WHERE rowid > {}",
                    from[1]
                ),
                format!(
                    "SELECT vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate,
                            total_amount, status, metadata
                       FROM vps_billing_cycles WHERE rowid > {}",
                    from[3]
                ),
                "SELECT id, organization_id, last_billed_at, created_at FROM vps_instances".to_owned(),
                "SELECT id, organization_id, balance FROM wallets".to_owned(),
            ];
            queries.map(|query| checksum(connection, &query).expect("tables of ours are read")).to_vec()
        };
        block_in_place(|| [of(&self.ours, self.history), of(&self.floor, [NOTHING; 4])])
    }

    async fn top_up(&self, stop: oneshot::Receiver<()>) -> Waits {
        let mut connection = open(&self.folder.path().join("ours.db"));
        let wallets = rows(&connection, "SELECT organization_id FROM wallets ORDER BY id LIMIT 10000");
        let wallets = wallets.expect("there are wallets");
        let top_up = |connection: &mut Connection, number: usize| {
            let wallet = &wallets[number * 7_919 % wallets.len()][0];
            let txn = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            txn.execute("UPDATE wallets SET balance = balance + 10000 WHERE organization_id = ?1", [wallet])?;
            txn.execute(
                "INSERT INTO payment_transactions (organization_id, amount, payment_method, payment_provider, status)
                 VALUES (?1, 10000, 'card', 'stripe', 'completed')",
                [wallet],
            )?;
            txn.commit()
        };
        Waits::of(
            async |number| {
                block_in_place(|| top_up(&mut connection, number)).expect("a wallet is topped up");
            },
            stop,
        )
        .await
    }
}

/// Independent of the order: the sum of the hashes of all rows.
fn checksum(connection: &Connection, sql: &str) -> rusqlite::Result<String> {
    let mut query = connection.prepare(sql)?;
    let columns = query.column_count();
    let mut rows = query.query([])?;
    let (mut count, mut sum) = (0_u64, 0_u64);
    while let Some(row) = rows.next()? {
        let mut hasher = DefaultHasher::new();
        for column in 0..columns {
            format!("{:?}", row.get_ref(column)?).hash(&mut hasher);
        }
        count += 1;
        sum = sum.wrapping_add(hasher.finish());
    }
    let table = sql.split_once("FROM ").map_or("", |(_, rest)| rest);
    let table = table.split_whitespace().next().unwrap_or_default();
    Ok(format!("{table}: {count} rows, checksum {sum}"))
}

/// Eleven statements: the instance, the price, the balance, the debit, what is left, the ledger, the cycle, its payment, the
/// anchor, and the transaction's two.
fn bill_as_the_original(connection: &mut Connection, id: &Value, hours: u32) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(32);
    let txn = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let instance =
        "SELECT organization_id, plan_id, label, coalesce(last_billed_at, created_at), backup_frequency
                      FROM vps_instances WHERE id = ?1";
    let (organization, plan, label, start, frequency): (String, String, String, String, String) =
        txn.prepare_cached(instance)?.query_row([id], |row| row.try_into())?;
    let prices =
        "SELECT (base_price + markup_price) / 7300000.0, (backup_price_hourly + backup_upcharge_hourly) / 1e6
                    FROM vps_plans WHERE id = ?1 OR provider_plan_id = ?1 LIMIT 1";
    let (base, backup): (f64, f64) = txn.prepare_cached(prices)?.query_row([&plan], |row| row.try_into())?;
    let rate = base + if frequency == "none" { 0.0 } else { backup };
    #[expect(clippy::cast_possible_truncation, reason = "an amount of an hour")]
    let amount = (rate * f64::from(hours) * 10_000.0).round() as i64;
    let wallet = "SELECT id, balance FROM wallets WHERE organization_id = ?1";
    let (wallet, before): (String, i64) =
        txn.prepare_cached(wallet)?.query_row([&organization], |row| row.try_into())?;
    txn.prepare_cached("UPDATE wallets SET balance = ?2 WHERE id = ?1")?
        .execute(params![wallet, before - amount])?;
    let after: i64 = txn
        .prepare_cached("SELECT balance FROM wallets WHERE id = ?1")?
        .query_row([&wallet], |row| row.get(0))?;
    let ledger = "INSERT INTO payment_transactions (organization_id, amount, currency, payment_method, payment_provider,
                                                    status, description, metadata)
                  VALUES (?1, ?2, 'USD', 'wallet_debit', 'internal', 'completed', ?3, ?4) RETURNING id";
    let description = format!("VPS Hourly Billing - {label} ({hours}h)");
    let metadata = format!(r#"{{"balance_before":{before},"balance_after":{after}}}"#);
    let payment: String = txn
        .prepare_cached(ledger)?
        .query_row(params![organization, -amount, description, metadata], |row| row.get(0))?;
    let cycle = "INSERT INTO vps_billing_cycles (vps_instance_id, organization_id, billing_period_start,
                                                 billing_period_end, hourly_rate, total_amount, status, metadata)
                 VALUES (?1, ?2, ?3, strftime('%Y-%m-%dT%H:%M:%f+00:00', ?3, ?4), ?5, ?6, 'pending', ?7) RETURNING id";
    let metadata = format!(r#"{{"hours_charged":{hours},"base_hourly_rate":{base},"vps_label":"{label}"}}"#);
    let later = format!("+{hours} hours");
    let cycle: String = txn
        .prepare_cached(cycle)?
        .query_row(params![id, organization, start, later, amount, amount, metadata], |row| row.get(0))?;
    txn.prepare_cached(
        "UPDATE vps_billing_cycles SET status = 'billed', payment_transaction_id = ?2 WHERE id = ?1",
    )?
    .execute([&cycle, &payment])?;
    txn.prepare_cached(
        "UPDATE vps_instances SET last_billed_at = strftime('%Y-%m-%dT%H:%M:%f000+00:00', ?2, ?3) WHERE id = ?1",
    )?
    .execute(params![id, start, later])?;
    txn.commit()
}
