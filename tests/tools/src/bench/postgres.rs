//! The benchmark on PostgreSQL: a separate server that keeps what it has committed.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use sea_orm::sqlx::{self, AssertSqlSafe, Connection as _, PgConnection, Row as _};
use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    time::sleep,
};
use uuid::Uuid;

use super::{Bench, Options, Waits, fleet};
use billing_test_support::{Database, Login, Panel, Postgres};

/// The configuration of a server for this much work; everything else is PostgreSQL's default.
const SETTINGS: [&str; 6] = [
    "fsync = on",
    "full_page_writes = on",
    "synchronous_commit = on",
    "shared_buffers = '2GB'",
    "max_wal_size = '8GB'",
    "checkpoint_timeout = '30min'",
];
/// The time between two readings of the transactions in progress.
const SAMPLING: Duration = Duration::from_millis(5);
/// Organizations in one COPY.
const CHUNK: usize = 5_000;

pub(super) struct PostgresEngine {
    server: &'static Postgres,
    ours: Place,
    floor: Place,
    original: Place,
    /// What ours had written when it was last copied.
    last_batch: i64,
    since: String,
}

/// A database with a connection past every policy.
struct Place {
    database: Database,
    connection: PgConnection,
}

impl Drop for PostgresEngine {
    fn drop(&mut self) {
        self.server.take_away();
    }
}

impl PostgresEngine {
    pub(super) async fn seeded(options: &Options) -> Self {
        Self::with_others(options, options.instances).await
    }

    /// Only the database of ours contains the fleet.
    pub(super) async fn seeded_alone(options: &Options) -> Self {
        Self::with_others(options, 0).await
    }

    async fn with_others(options: &Options, instances: u32) -> Self {
        let added = options.settings.iter().map(String::as_str);
        let settings: Vec<&str> = SETTINGS.into_iter().chain(added).collect();
        let server = Postgres::durable(&settings).await;
        let mut ours = Place::seeded(server, options.instances).await;
        ours.make_history(options.history).await;
        let floor = Place::seeded(server, instances).await;
        let original = Place::seeded(server, instances).await;
        let since = ours.text("SELECT clock_timestamp()::text").await;
        Self { server, ours, floor, original, last_batch: 0, since }
    }
}

impl PostgresEngine {
    /// Returns the duration of the longest transaction of the daemon that wrote, in milliseconds. Until its end, others wait for the rows
    /// that it locks.
    pub(super) async fn longest_transaction(&self, mut stop: oneshot::Receiver<()>) -> f64 {
        let mut connection =
            PgConnection::connect(&self.ours.database.url(Login::Admin)).await.expect("the server answers");
        let mut longest: f64 = 0.0;
        while matches!(stop.try_recv(), Err(TryRecvError::Empty)) {
            let oldest: f64 = sqlx::query_scalar(
                "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start) * 1000), 0)::float8
                   FROM pg_stat_activity
                  WHERE datname = current_database() AND usename <> current_user AND backend_xid IS NOT NULL",
            )
            .fetch_one(&mut connection)
            .await
            .expect("the server answers");
            longest = longest.max(oldest);
            sleep(SAMPLING).await;
        }
        longest
    }

    /// Returns the size of the database that ours bills.
    pub(super) async fn database_bytes(&mut self) -> u64 {
        let size = self.ours.text("SELECT pg_database_size(current_database())::text").await;
        size.parse().expect("a number of bytes")
    }
}

impl Place {
    async fn seeded(server: &'static Postgres, instances: u32) -> Self {
        let database = server.migrated_database(Panel::Empty).await;
        let connection =
            PgConnection::connect(&database.url(Login::Admin)).await.expect("the server answers");
        let mut place = Self { database, connection };
        let mut plans = String::new();
        for (index, (name, base, markup, backup)) in fleet::PLANS.iter().enumerate() {
            let money = |ten_thousandths: i64| ten_thousandths / 10_000;
            let id = fleet::plan_id(index);
            writeln!(plans, "{id}\t{name}\tg6-{name}\t{}\t{}\t0.{backup:06}", money(*base), money(*markup))
                .expect("a string takes everything");
        }
        place
            .copy(
                "vps_plans (id, name, provider_plan_id, base_price, markup_price, backup_price_hourly)",
                &plans,
            )
            .await;
        let mut organizations = fleet::organizations(instances).peekable();
        while organizations.peek().is_some() {
            place.seed(organizations.by_ref().take(CHUNK)).await;
        }
        place.run("ANALYZE").await;
        place
    }

    async fn seed(&mut self, organizations: impl Iterator<Item = fleet::Organization>) {
        let [mut users, mut owners, mut wallets, mut instances] = [const { String::new() }; 4];
        let written = "a string takes everything";
        for organization in organizations {
            let fleet::Organization { user, id, wallet, slug, balance, .. } = &organization;
            writeln!(users, "{user}\t{slug}@example.com\t{slug}").expect(written);
            writeln!(owners, "{id}\t{slug}\t{slug}\t{user}").expect(written);
            writeln!(wallets, "{wallet}\t{id}\t{}", balance / 10_000).expect(written);
            for instance in &organization.instances {
                let fleet::Instance { id: instance_id, plan, label, status, backups, created_ms, billed_ms } =
                    instance;
                let (created, billed) = (fleet::text(*created_ms), fleet::text(*billed_ms));
                writeln!(
                    instances,
                    "{instance_id}\t{id}\t{plan}\t{label}\t{label}\t{status}\t{backups}\t{created}\t{billed}"
                )
                .expect(written);
            }
        }
        self.copy("users (id, email, name)", &users).await;
        self.copy("organizations (id, name, slug, owner_id)", &owners).await;
        self.copy("wallets (id, organization_id, balance)", &wallets).await;
        self.copy(
            "vps_instances (id, organization_id, plan_id, provider_instance_id, label, status, backup_frequency, \
             created_at, last_billed_at)",
            &instances,
        )
        .await;
    }

    /// Charges of earlier hours, with their rows in the panel's tables, a whole fleet an hour.
    async fn make_history(&mut self, rows: u32) {
        if rows == 0 {
            return;
        }
        let statements = [
            // Foreign keys hold by construction; to check each would take most of the time.
            "SET session_replication_role = replica".to_owned(),
            "CREATE TEMP TABLE fleet AS SELECT row_number() OVER (ORDER BY organization_id, id) - 1 AS n, i.*
               FROM vps_instances i"
                .to_owned(),
            // The ids rise with time, as those of a daemon's rows do.
            format!(
                "CREATE TEMP TABLE past AS
                 SELECT h, f.n, lpad(to_hex(h * 100000000 + f.n), 32, '0')::uuid AS ledger,
                        lpad('1' || lpad(to_hex(h * 100000000 + f.n), 30, '0'), 32, '0')::uuid AS cycle
                   FROM generate_series(0, ({rows} - 1) / (SELECT count(*) FROM fleet)) AS h, fleet f
                  WHERE h * (SELECT count(*) FROM fleet) + f.n < {rows}"
            ),
            "INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate, amount,
                                          carry, payment_transaction_id, currency)
             SELECT f.last_billed_at - interval '10000 hours' + p.h * interval '1 hour', f.id, f.organization_id, 0, 1,
                    5000000, 68, 0, p.ledger, 'USD'
               FROM past p JOIN fleet f USING (n) ORDER BY 1, 2"
                .to_owned(),
            "INSERT INTO payment_transactions (id, organization_id, amount, currency, payment_method, payment_provider,
                                               status, description, metadata, created_at)
             SELECT p.ledger, f.organization_id, -0.0068, 'USD', 'wallet_debit', 'internal', 'completed',
                    'VPS Hourly Billing - ' || f.label || ' (1h)', '{\"balance_before\":100.0068,\"balance_after\":100.00}',
                    now() - interval '10000 hours' + p.h * interval '1 hour'
               FROM past p JOIN fleet f USING (n) ORDER BY p.ledger"
                .to_owned(),
            "INSERT INTO vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start,
                                             billing_period_end, hourly_rate, total_amount, status,
                                             payment_transaction_id, metadata, created_at)
             SELECT p.cycle, f.id, f.organization_id, f.last_billed_at - interval '10000 hours' + p.h * interval '1 hour',
                    f.last_billed_at - interval '9999 hours' + p.h * interval '1 hour', 0.0068, 0.0068, 'billed', p.ledger,
                    json_build_object('hours_charged', 1, 'elapsed_hours', 1, 'base_hourly_rate', 0.006849,
                                      'backup_hourly_rate', 0, 'backup_frequency', 'none', 'vps_label', f.label),
                    now() - interval '10000 hours' + p.h * interval '1 hour'
               FROM past p JOIN fleet f USING (n) ORDER BY p.cycle"
                .to_owned(),
            "DROP TABLE past, fleet".to_owned(),
            "RESET session_replication_role".to_owned(),
            "VACUUM ANALYZE".to_owned(),
        ];
        for statement in statements {
            self.run(&statement).await;
        }
    }

    async fn copy(&mut self, into: &str, rows: &str) {
        let copying = self.connection.copy_in_raw(&format!("COPY {into} FROM STDIN")).await;
        let mut copying = copying.expect("the server takes rows");
        copying.send(rows.as_bytes()).await.expect("the server takes rows");
        copying.finish().await.expect("the server takes rows");
    }

    async fn run(&mut self, sql: &str) {
        let result = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.connection).await;
        result.unwrap_or_else(|error| panic!("{error}, in:\n{sql}"));
    }

    /// The one value that a statement returns.
    async fn text(&mut self, sql: &str) -> String {
        let row = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_one(&mut self.connection).await;
        let row = row.unwrap_or_else(|error| panic!("{error}, in:\n{sql}"));
        row.try_get_unchecked(0).unwrap_or_else(|error| panic!("{error}, in:\n{sql}"))
    }

    async fn checksum(&mut self, since: &str) -> Vec<String> {
        let of = |table: &str, columns: &str, condition: &str| {
            format!(
                "SELECT '{table}: ' || count(*) || ' rows, checksum '
                        || coalesce(sum(hashtextextended(concat_ws('|', {columns}), 0)::numeric), 0)
                   FROM {table} WHERE {condition}"
            )
        };
        let written = format!("created_at > '{since}'");
        let queries = [
            of(
                "billing_charges",
                "period_start, instance_id, organization_id, hours, rate, amount, carry, currency, by_panel",
                "batch_id > 0",
            ),
            of(
                "billing_meters",
                "instance_id, organization_id, billed_through, carry, rate, backup_rate, rate_changes",
                "true",
            ),
            of(
                "billing_wallet_openings",
                "wallet_id, organization_id, opening_balance, opening_ledger",
                "true",
            ),
            of("billing_batches", "instances, charges, held, hours, currencies", "true"),
            of(
                "payment_transactions",
                "organization_id, amount, currency, payment_method, payment_provider, status, description, metadata",
                &written,
            ),
            of(
                "vps_billing_cycles",
                "vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate,
                 total_amount, status, metadata",
                &written,
            ),
            of("vps_instances", "id, organization_id, last_billed_at, created_at", "true"),
            of("wallets", "id, organization_id, balance", "true"),
        ];
        let mut checksums = Vec::new();
        for query in queries {
            checksums.push(self.text(&query).await);
        }
        checksums
    }
}

impl Bench for PostgresEngine {
    fn url(&self) -> String {
        self.ours.database.url(Login::Owner)
    }

    async fn used(&mut self) -> (f64, f64) {
        let wal = self.ours.text("SELECT (pg_current_wal_insert_lsn() - '0/0')::text").await;
        (cpu_seconds(self.server), wal.parse().expect("a number of bytes"))
    }

    async fn settle(&mut self) {
        // What a checkpoint leaves to write again in full is the same for all.
        self.ours.run("CHECKPOINT").await;
    }

    async fn floor(&mut self, hours: u32, first: bool) -> f64 {
        let folder = self.server.folder().join("rows");
        fs::create_dir_all(&folder).expect("a folder next to the server's is created");
        share(&folder);
        let charges = format!("batch_id > {}", self.last_batch);
        let written = format!("created_at > '{}'", self.since);
        let mut tables = vec![
            ("billing_batches", format!("id > {}", self.last_batch)),
            ("payment_transactions", written.clone()),
            ("billing_charges", charges),
            ("vps_billing_cycles", written),
        ];
        if first {
            tables.extend([
                ("billing_meters", "true".to_owned()),
                ("billing_wallet_openings", "true".to_owned()),
            ]);
        }
        for (table, condition) in &tables {
            let file = folder.join(table);
            let copy = format!(
                "COPY (SELECT * FROM {table} WHERE {condition}) TO '{}' (FORMAT binary)",
                file.display()
            );
            self.ours.run(&copy).await;
        }
        let moves = [
            ("balances", "SELECT id, balance FROM wallets"),
            ("carries", "SELECT instance_id, billed_through, carry, seen_at FROM billing_meters"),
        ];
        for (file, query) in moves {
            let file = folder.join(file);
            self.ours.run(&format!("COPY ({query}) TO '{}' (FORMAT binary)", file.display())).await;
        }
        self.last_batch =
            self.ours.text("SELECT max(id)::text FROM billing_batches").await.parse().expect("a number");
        self.since = self.ours.text("SELECT clock_timestamp()::text").await;
        let mut statements = vec!["BEGIN".to_owned()];
        let from = |table: &str, file: &str| {
            format!("COPY {table} FROM '{}' (FORMAT binary)", folder.join(file).display())
        };
        statements.extend(tables.iter().map(|(table, _)| from(table, table)));
        statements.push(format!(
            "UPDATE vps_instances SET last_billed_at = last_billed_at + interval '{hours} hours', updated_at = now()"
        ));
        statements.push("CREATE TEMP TABLE balances (id uuid, balance numeric) ON COMMIT DROP".to_owned());
        statements.push(from("balances", "balances"));
        statements.push(
            "UPDATE wallets w SET balance = b.balance, updated_at = now() FROM balances b WHERE b.id = w.id"
                .to_owned(),
        );
        if !first {
            statements.push(
                "CREATE TEMP TABLE carries (id uuid, billed_through timestamptz, carry bigint, seen_at timestamptz)
                 ON COMMIT DROP"
                    .to_owned(),
            );
            statements.push(from("carries", "carries"));
            statements.push(
                "UPDATE billing_meters m SET billed_through = c.billed_through, carry = c.carry, seen_at = c.seen_at
                   FROM carries c WHERE c.id = m.instance_id"
                    .to_owned(),
            );
        }
        statements.push("COMMIT".to_owned());
        let started = Instant::now();
        for statement in statements {
            self.floor.run(&statement).await;
        }
        let seconds = started.elapsed().as_secs_f64();
        fs::remove_dir_all(&folder).expect("a folder of ours is removed");
        seconds
    }

    async fn original(&mut self, sample: u32, hours: u32) -> f64 {
        let query = format!(
            "SELECT id, organization_id, plan_id, label FROM vps_instances ORDER BY created_at, id LIMIT {sample}"
        );
        let due = sqlx::raw_sql(AssertSqlSafe(query)).fetch_all(&mut self.original.connection).await;
        let due = due.expect("the original reads what is due");
        let started = Instant::now();
        for row in due {
            let (id, organization): (Uuid, Uuid) = (row.get_unchecked(0), row.get_unchecked(1));
            let (plan, label): (String, String) = (row.get_unchecked(2), row.get_unchecked(3));
            bill_as_the_original(&mut self.original.connection, id, organization, &plan, &label, hours)
                .await
                .expect("the original bills");
        }
        started.elapsed().as_secs_f64()
    }

    async fn checksums(&mut self) -> [Vec<String>; 2] {
        // The copies have the times of the originals.
        let since =
            self.ours.text("SELECT (min(created_at) - interval '1 us')::text FROM billing_batches").await;
        [self.ours.checksum(&since).await, self.floor.checksum(&since).await]
    }

    async fn top_up(&self, stop: oneshot::Receiver<()>) -> Waits {
        let mut connection =
            PgConnection::connect(&self.ours.database.url(Login::Admin)).await.expect("the server answers");
        let wallets: Vec<Uuid> =
            sqlx::query_scalar("SELECT organization_id FROM wallets ORDER BY id LIMIT 10000")
                .fetch_all(&mut connection)
                .await
                .expect("there are wallets");
        Waits::of(
            async |number| {
                let wallet = wallets[number * 7_919 % wallets.len()];
                let mut txn = connection.begin().await.expect("the server answers");
                sqlx::query("UPDATE wallets SET balance = balance + 1 WHERE organization_id = $1")
                    .bind(wallet)
                    .execute(&mut *txn)
                    .await
                    .expect("a wallet is topped up");
                sqlx::query(
                    "INSERT INTO payment_transactions (organization_id, amount, payment_method, payment_provider, status)
                     VALUES ($1, 1, 'card', 'stripe', 'completed')",
                )
                .bind(wallet)
                .execute(&mut *txn)
                .await
                .expect("a wallet is topped up");
                txn.commit().await.expect("a wallet is topped up");
            },
            stop,
        )
        .await
    }
}

/// Eleven statements: the price, the balance, the debit, what is left, the cycle, its payment, the anchor.
async fn bill_as_the_original(
    connection: &mut PgConnection,
    id: Uuid,
    organization: Uuid,
    plan: &str,
    label: &str,
    hours: u32,
) -> Result<(), sqlx::Error> {
    let mut txn = connection.begin().await?;
    let instance = sqlx::query(
        "SELECT coalesce(last_billed_at, created_at)::text, backup_frequency FROM vps_instances WHERE id = $1",
    )
    .bind(id)
    .fetch_one(&mut *txn)
    .await?;
    let (start, frequency): (String, Option<String>) = (instance.get(0), instance.get(1));
    let prices = sqlx::query(
        "SELECT (base_price + markup_price)::float8 / 730, (backup_price_hourly + backup_upcharge_hourly)::float8
           FROM vps_plans WHERE id::text = $1 OR provider_plan_id = $1 LIMIT 1",
    )
    .bind(plan)
    .fetch_one(&mut *txn)
    .await?;
    let (base, backup): (f64, f64) = (prices.get(0), prices.get(1));
    let rate = base + if frequency.as_deref() == Some("none") { 0.0 } else { backup };
    let amount = rate * f64::from(hours);
    let wallet = sqlx::query("SELECT id, balance::float8 FROM wallets WHERE organization_id = $1")
        .bind(organization)
        .fetch_one(&mut *txn)
        .await?;
    let (wallet, before): (Uuid, f64) = (wallet.get(0), wallet.get(1));
    sqlx::query("UPDATE wallets SET balance = $2::float8::numeric, updated_at = now() WHERE id = $1")
        .bind(wallet)
        .bind(before - amount)
        .execute(&mut *txn)
        .await?;
    let after: f64 = sqlx::query_scalar("SELECT balance::float8 FROM wallets WHERE id = $1")
        .bind(wallet)
        .fetch_one(&mut *txn)
        .await?;
    let payment: Uuid = sqlx::query_scalar(
        "INSERT INTO payment_transactions (organization_id, amount, currency, payment_method, payment_provider, status,
                                           description, metadata)
         VALUES ($1, -($2::float8::numeric), 'USD', 'wallet_debit', 'internal', 'completed', $3, $4::text::jsonb)
         RETURNING id",
    )
    .bind(organization)
    .bind(amount)
    .bind(format!("VPS Hourly Billing - {label} ({hours}h)"))
    .bind(format!(r#"{{"balance_before":{before},"balance_after":{after}}}"#))
    .fetch_one(&mut *txn)
    .await?;
    let cycle: Uuid = sqlx::query_scalar(
        "INSERT INTO vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,
                                         hourly_rate, total_amount, status, metadata)
         VALUES ($1, $2, $3::text::timestamptz, $3::text::timestamptz + $4 * interval '1 hour', $5::float8::numeric,
                 $6::float8::numeric, 'pending', $7::text::jsonb) RETURNING id",
    )
    .bind(id)
    .bind(organization)
    .bind(&start)
    .bind(f64::from(hours))
    .bind(rate)
    .bind(amount)
    .bind(format!(r#"{{"hours_charged":{hours},"base_hourly_rate":{base},"vps_label":"{label}"}}"#))
    .fetch_one(&mut *txn)
    .await?;
    sqlx::query("UPDATE vps_billing_cycles SET status = 'billed', payment_transaction_id = $2 WHERE id = $1")
        .bind(cycle)
        .bind(payment)
        .execute(&mut *txn)
        .await?;
    sqlx::query(
        "UPDATE vps_instances SET last_billed_at = $2::text::timestamptz + $3 * interval '1 hour' WHERE id = $1",
    )
    .bind(id)
    .bind(&start)
    .bind(f64::from(hours))
    .execute(&mut *txn)
    .await?;
    txn.commit().await
}

/// The server, which may run as another user, writes here.
fn share(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777))
        .expect("a folder of ours is ours to share");
}

/// Processor time of the server and of every process that it started.
fn cpu_seconds(server: &Postgres) -> f64 {
    let pid = fs::read_to_string(server.folder().join("data/postmaster.pid")).expect("the server runs");
    let pid = pid.lines().next().expect("its process id comes first").to_owned();
    let ticks = |pid: &str, fields: &[usize]| -> Option<(String, u64)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may contain any text, so the fields are counted after it.
        let fields_of: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let sum = fields.iter().filter_map(|field| fields_of.get(*field)?.parse::<u64>().ok()).sum();
        Some((fields_of.get(1)?.to_string(), sum))
    };
    // Those that ended are counted in the postmaster's fields 16 and 17, for it waits for them.
    let mut sum = ticks(&pid, &[11, 12, 13, 14]).map_or(0, |(_, ticks)| ticks);
    for entry in fs::read_dir("/proc").expect("Linux shows its processes").flatten() {
        if let Some((parent, own)) = entry.file_name().to_str().and_then(|child| ticks(child, &[11, 12]))
            && parent == pid
        {
            sum += own;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a number of hundredths of seconds")]
    let seconds = sum as f64 / rustix::param::clock_ticks_per_second() as f64;
    seconds
}
