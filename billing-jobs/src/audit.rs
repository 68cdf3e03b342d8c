//! Invariants that hold at any time, each as a query for what breaks it.

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr};
use serde::Serialize;

use crate::{
    BILLING_JOB,
    billing::{is_postgres_amount, is_sqlite_amount, milliseconds, sqlite_micros},
    columns,
    db::{SQLITE_NOW, begin, begin_read, code, query_one, statement},
    record,
    uncharged::{Closed, Uncharged, uncharged},
};

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// How many rows were held against an invariant.
    pub checked: u64,
    /// Each row that breaks one.
    pub violations: Vec<Violation>,
    /// The debts that were ever closed without a charge, by reason. They break no invariant.
    #[serde(serialize_with = "by_reason")]
    pub uncharged: Vec<Uncharged>,
}

fn by_reason<S: serde::Serializer>(uncharged: &[Uncharged], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(uncharged.iter().map(|of_one| (&of_one.reason, &of_one.debt)))
}

/// A row that breaks an invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which invariant.
    pub check: String,
    /// What is wrong, with the row's keys.
    pub detail: String,
}

/// No more violations of one invariant than these are listed; a further line counts the rest.
const LISTED: usize = 100;

struct Check {
    name: &'static str,
    /// How many rows are held against it.
    count: &'static str,
    /// `detail` of each row that breaks it.
    broken: String,
}

#[expect(clippy::too_many_lines, reason = "a list, of which each entry is read by itself")]
fn checks(w: Words) -> Vec<Check> {
    vec![
    Check {
        name: "charge_arithmetic",
        count: "SELECT count(*) AS n FROM billing_charges",
        broken: format!(
                "SELECT 'charge of instance ' || instance_id || ' from ' || period_start || ': '
                        || carried || ' carried, plus ' || hours || ' h at ' || rate || ' is not ' || amount
                        || ' and ' || carry || ' carried on' AS detail
                   FROM (SELECT c.*, coalesce(lag(c.carry) OVER (PARTITION BY c.instance_id ORDER BY c.period_start), 0)
                                     AS carried
                           FROM billing_charges c) AS x
                  WHERE (NOT by_panel AND carried + {wide_rate} * hours <> {wide_amount} * 73000 + carry)
                     OR (by_panel AND carry <> carried)",
                wide_rate = w.wide("rate"),
                wide_amount = w.wide("amount"),
            ),
    },
    Check {
        name: "charges_contiguous",
        count: "SELECT count(*) AS n FROM billing_charges",
        broken: format!(
                "SELECT 'instance ' || instance_id || ': a charge ends at ' || ended || ' and the next begins at '
                        || period_start AS detail
                   FROM (SELECT c.instance_id, c.period_start,
                                lag({end}) OVER (PARTITION BY c.instance_id ORDER BY c.period_start) AS ended
                           FROM billing_charges c) AS x
                  WHERE ended > period_start
                     OR (ended < period_start
                         AND EXISTS (SELECT 1 FROM vps_instances i WHERE i.id = x.instance_id)
                         AND NOT EXISTS (SELECT 1 FROM vps_billing_cycles y
                                          WHERE y.vps_instance_id = x.instance_id AND y.status = 'billed'
                                            AND {at_billing_period_start} < x.period_start
                                            AND {at_billing_period_end} > x.ended)
                         AND {gap} > (SELECT coalesce(sum(h.hours_due), 0) FROM billing_holds h
                                       WHERE h.instance_id = x.instance_id
                                         AND h.closed_reason = 'instance_transferred'))",
                gap = w.hours_between("ended", "period_start"),
                at_billing_period_start = w.at("y.billing_period_start"),
                at_billing_period_end = w.at("y.billing_period_end"),
                end = w.end(),
            ),
    },
    Check {
        name: "charges_within_life",
        count: "SELECT count(*) AS n FROM billing_charges",
        broken: format!(
                "SELECT 'instance ' || c.instance_id || ': the charge from ' || c.period_start
                        || ' begins before the instance or ends in the future' AS detail
                   FROM billing_charges c LEFT JOIN vps_instances i ON i.id = c.instance_id
                  WHERE {end} > {now} OR c.period_start < {at_created_at}",
                at_created_at = w.at("i.created_at"),
                end = w.end(),
                now = w.now(),
            ),
    },
    Check {
        name: "watermark",
        count: "SELECT count(*) AS n FROM billing_meters",
        broken: format!(
                "SELECT 'instance ' || m.instance_id || ': the meter stands at ' || m.billed_through
                        || ', charges reach ' || coalesce(CAST(c.ended AS TEXT), 'nothing') || ', the panel believes '
                        || coalesce(CAST({anchor} AS TEXT), 'nothing') AS detail
                   FROM billing_meters m
                   LEFT JOIN (SELECT instance_id, max({end}) AS ended,
                                     max(CASE WHEN by_panel THEN {end} END) AS panel_ended
                                FROM billing_charges c GROUP BY instance_id) c
                          ON c.instance_id = m.instance_id
                   LEFT JOIN vps_instances i ON i.id = m.instance_id
                  WHERE m.billed_through < c.ended
                     OR ({panels_anchor} < {panels_watermark}
                         AND {panels_anchor} >= coalesce({panels_last}, {panels_anchor}))",
                anchor = w.at("coalesce(i.last_billed_at, i.created_at)"),
                panels_last = w.panels("c.panel_ended"),
                panels_anchor = w.panels(&w.at("coalesce(i.last_billed_at, i.created_at)")),
                panels_watermark = w.panels("m.billed_through"),
                end = w.end(),
            ),
    },
    Check {
        name: "meter_carry",
        count: "SELECT count(*) AS n FROM billing_meters",
        broken: "SELECT 'instance ' || m.instance_id || ': the meter carries ' || m.carry || ', its last charge '
                        || coalesce(CAST(c.carry AS TEXT), 'nothing') AS detail
                   FROM billing_meters m
                   LEFT JOIN (SELECT instance_id, carry,
                                     row_number() OVER (PARTITION BY instance_id ORDER BY period_start DESC) AS age
                                FROM billing_charges) c ON c.instance_id = m.instance_id AND c.age = 1
                  WHERE m.carry <> coalesce(c.carry, 0)".to_owned(),
    },
    Check {
        name: "charge_without_meter",
        count: "SELECT count(DISTINCT instance_id) AS n FROM billing_charges",
        broken: "SELECT DISTINCT 'instance ' || c.instance_id || ' has charges and no meter' AS detail
                   FROM billing_charges c
                  WHERE NOT EXISTS (SELECT 1 FROM billing_meters m WHERE m.instance_id = c.instance_id)".to_owned(),
    },
    Check {
        name: "charge_in_ledger",
        count: "SELECT count(*) AS n FROM billing_charges",
        broken: format!(
                "SELECT 'instance ' || c.instance_id || ': the charge from ' || c.period_start
                        || ' is not in payment_transactions with the same amount' AS detail
                   FROM billing_charges c LEFT JOIN payment_transactions t ON t.id = c.payment_transaction_id
                  WHERE (c.amount > 0 OR c.payment_transaction_id IS NOT NULL)
                    AND (t.id IS NULL OR {amount} <> -c.amount OR t.organization_id <> c.organization_id
                         OR (NOT c.by_panel AND coalesce(t.currency, 'XXX') <> c.currency))
                    AND EXISTS (SELECT 1 FROM organizations o WHERE o.id = c.organization_id)",
                amount = w.money("t.amount"),
            ),
    },
    Check {
        name: "charge_in_cycles",
        count: "SELECT count(*) AS n FROM billing_charges",
        broken: format!(
                "SELECT 'instance ' || c.instance_id || ': the charge from ' || c.period_start || ' has '
                        || count(y.id) || ' billed cycles instead of one' AS detail
                   FROM billing_charges c
                   JOIN vps_instances i ON i.id = c.instance_id
                   LEFT JOIN vps_billing_cycles y
                          ON y.vps_instance_id = c.instance_id AND y.status = 'billed'
                         AND {cycle_start} = {charge_start} AND {total_amount} = c.amount
                  GROUP BY c.instance_id, c.period_start, c.hours, c.by_panel, {anchor}
                 HAVING count(y.id) <> 1
                    AND NOT (c.by_panel AND count(y.id) = 0 AND {panels_anchor} < {panels_end})",
                cycle_start = w.panels(&w.at("y.billing_period_start")),
                charge_start = w.panels("c.period_start"),
                total_amount = w.money("y.total_amount"),
                anchor = w.at("coalesce(i.last_billed_at, i.created_at)"),
                panels_anchor = w.panels(&w.at("coalesce(i.last_billed_at, i.created_at)")),
                panels_end = w.panels(&w.end()),
            ),
    },
    Check {
        name: "ledger_chain",
        count: "SELECT count(*) AS n FROM billing_charges WHERE payment_transaction_id IS NOT NULL",
        broken: format!(
                "SELECT 'payment transaction ' || id || ': balance_before and balance_after do not differ by its amount'
                        AS detail
                   FROM (SELECT t.id, t.amount, {balance_before} AS balance_before, {balance_after} AS balance_after
                           FROM billing_charges c JOIN payment_transactions t ON t.id = c.payment_transaction_id
                          WHERE NOT c.by_panel) AS t
                  WHERE {before} + {amount} <> {after} OR {before} IS NULL OR {after} IS NULL",
                amount = w.money("t.amount"),
                balance_before = w.metadata("balance_before"),
                balance_after = w.metadata("balance_after"),
                before = w.amount_of_text("t.balance_before"),
                after = w.amount_of_text("t.balance_after"),
            ),
    },
    Check {
        name: "wallet_balance",
        count: "SELECT count(*) AS n FROM billing_wallets",
        broken: format!(
                "SELECT 'wallet ' || b.wallet_id || ': the balance changed by '
                        || coalesce(CAST({balance} - b.opening_balance AS TEXT), 'nothing that can be counted')
                        || ' ten-thousandths since it was first charged, the ledger by '
                        || (b.ledger - b.opening_ledger) AS detail
                   FROM (SELECT b.*, coalesce((SELECT sum({amount}) FROM payment_transactions t
                                                WHERE t.organization_id = b.organization_id AND t.status = 'completed'
                                                  AND {is_amount}), 0)
                                     AS ledger
                           FROM billing_wallets b) AS b
                   JOIN wallets w ON w.id = b.wallet_id
                  WHERE w.balance IS NULL OR {balance} - b.opening_balance <> b.ledger - b.opening_ledger",
                balance = w.money("w.balance"),
                amount = w.money("t.amount"),
                is_amount = w.is_amount("t.amount"),
            ),
    },
    Check {
        name: "ledger_amount",
        count: "SELECT count(*) AS n FROM payment_transactions WHERE status = 'completed'",
        broken: format!(
                "SELECT 'payment transaction ' || t.id || ': ' || coalesce(CAST(t.amount AS TEXT), 'NULL')
                        || ' is not an amount that a wallet can hold; the sums of the ledger leave it out' AS detail
                   FROM payment_transactions t
                  WHERE t.status = 'completed' AND (t.amount IS NULL OR NOT {is_amount})",
                is_amount = w.is_amount("t.amount"),
            ),
    },
    Check {
        name: "wallet_without_opening",
        count: "SELECT count(DISTINCT organization_id) AS n FROM billing_charges",
        broken: "SELECT DISTINCT 'organization ' || c.organization_id || ': its wallet was charged, and what it held before is gone'
                        AS detail
                   FROM billing_charges c JOIN wallets w ON w.organization_id = c.organization_id
                  WHERE c.payment_transaction_id IS NOT NULL AND NOT c.by_panel
                    AND NOT EXISTS (SELECT 1 FROM billing_wallets b WHERE b.organization_id = c.organization_id)".to_owned(),
    },
    Check {
        name: "batch_totals",
        count: "SELECT count(*) AS n FROM billing_batches",
        broken: format!(
                "SELECT 'batch ' || x.id || ': its row says ' || sum(x.charges) || ' charges of ' || sum(x.instances)
                        || ' instances, ' || sum(x.hours) || ' h, ' || sum(x.amount) || ' ' || x.currency
                        || ' more than its charges' AS detail
                   FROM (SELECT b.id, 'in all' AS currency, b.charges, b.instances, b.hours, 0 AS amount FROM billing_batches b
                         UNION ALL
                         SELECT c.batch_id, 'in all', -count(*), -count(DISTINCT c.instance_id), -sum(c.hours), 0
                           FROM billing_charges c GROUP BY c.batch_id
                         UNION ALL
                         SELECT b.id, e.key, {charges}, 0, {hours}, {amount} FROM billing_batches b, {each} e
                         UNION ALL
                         SELECT c.batch_id, c.currency, -count(*), 0, -sum(c.hours), -sum(c.amount)
                           FROM billing_charges c GROUP BY c.batch_id, c.currency) AS x
                  WHERE EXISTS (SELECT 1 FROM billing_batches b WHERE b.id = x.id)
                  GROUP BY x.id, x.currency
                 HAVING sum(x.charges) <> 0 OR sum(x.instances) <> 0 OR sum(x.hours) <> 0 OR sum(x.amount) <> 0",
                charges = w.figure("charges"),
                hours = w.figure("hours"),
                amount = w.figure("amount"),
                each = w.each("b.currencies"),
            ),
    },
    Check {
        name: "charge_without_batch",
        count: "SELECT count(DISTINCT batch_id) AS n FROM billing_charges",
        broken: "SELECT DISTINCT 'charges of batch ' || c.batch_id || ', which has no row' AS detail
                   FROM billing_charges c
                  WHERE NOT EXISTS (SELECT 1 FROM billing_batches b WHERE b.id = c.batch_id)".to_owned(),
    },
    Check {
        name: "run_totals",
        count: "SELECT count(*) AS n FROM billing_job_runs WHERE job = $1 AND status = 'done'",
        broken: format!(
                "SELECT 'run ' || x.id || ': its row says ' || sum(x.charged) || ' instances, ' || sum(x.hours) || ' h, '
                        || sum(x.amount) || ' ten-thousandths ' || x.currency || ' more than its batches' AS detail
                   FROM (SELECT r.id, 'in all' AS currency, coalesce({charged}, -1) AS charged,
                                r.items AS items, coalesce({hours}, -1) AS hours, 0 AS amount
                           FROM billing_job_runs r WHERE r.job = $1 AND r.status = 'done'
                         UNION ALL
                         SELECT b.run_id, 'in all', -b.instances, -b.instances, -b.hours, 0 FROM billing_batches b
                         UNION ALL
                         SELECT r.id, e.key, 0, 0, {of_currency_hours}, {of_currency_amount}
                           FROM billing_job_runs r, {of_run} e WHERE r.job = $1 AND r.status = 'done'
                         UNION ALL
                         SELECT b.run_id, e.key, 0, 0, -{batch_hours}, -{batch_amount} FROM billing_batches b, {of_batch} e) AS x
                  WHERE EXISTS (SELECT 1 FROM billing_job_runs r WHERE r.id = x.id AND r.job = $1 AND r.status = 'done')
                  GROUP BY x.id, x.currency
                 HAVING sum(x.charged) <> 0 OR sum(x.items) <> 0 OR sum(x.hours) <> 0 OR sum(x.amount) <> 0",
                charged = w.count_of_text(&w.run("charged")),
                hours = w.count_of_text(&w.run("hours")),
                of_currency_hours = w.figure("hours"),
                of_currency_amount = w.decimal("amount"),
                batch_hours = w.figure("hours"),
                batch_amount = w.figure("amount"),
                of_run = w.each(&w.choose(
                    "CASE WHEN json_valid(r.details) THEN r.details -> '$.currencies' END".to_owned(),
                    "CASE WHEN jsonb_typeof(r.details -> 'currencies') = 'object' THEN r.details -> 'currencies' ELSE '{}' END"
                        .to_owned(),
                )),
                of_batch = w.each("b.currencies"),
            ),
    },
    Check {
        name: "due_charged_or_held",
        count: "SELECT count(*) AS n FROM vps_instances",
        broken: format!(
                "SELECT 'instance ' || i.id || ' had hours due at the last finished run, and is neither charged nor held'
                        AS detail
                   FROM vps_instances i
                   LEFT JOIN billing_meters m ON m.instance_id = i.id
                  WHERE {start}
                        <= (SELECT {an_hour_before} FROM billing_batches b
                              JOIN billing_job_runs r ON r.id = b.run_id AND r.status = 'done')
                    AND NOT EXISTS (SELECT 1 FROM billing_holds h WHERE h.instance_id = i.id AND h.closed_at IS NULL)",
                start = w.start(),
                an_hour_before = w.an_hour_before("max(b.as_of)"),
            ),
    },
    ]
}

/// Checks every invariant. Changes nothing.
#[expect(clippy::missing_panics_doc, reason = "it has no reason to stop")]
pub async fn audit(db: &DatabaseConnection) -> Result<Audit, DbErr> {
    let audit = audit_until(db, || false).await?;
    Ok(audit.expect("it has no reason to stop"))
}

/// The same, unless `stop`, which is asked before each step, says that there is no more time: half an audit is none.
pub async fn audit_until(
    db: &DatabaseConnection,
    stop: impl Fn() -> bool + Send + Sync,
) -> Result<Option<Audit>, DbErr> {
    let mut audit = Audit::default();
    let words = Words { sqlite: db.get_database_backend() == DbBackend::Sqlite };
    let txn = begin_read(db).await?;
    for check in checks(words) {
        if stop() {
            txn.rollback().await?;
            return Ok(None);
        }
        let query = |sql: &str| {
            let parameters = sql.contains("$1").then(|| BILLING_JOB.into());
            statement(&txn, sql, parameters)
        };
        let counted = txn.query_one_raw(query(check.count)).await?;
        let counted: i64 = counted.map_or(Ok(0), |row| row.try_get("", "n"))?;
        audit.checked += counted.unsigned_abs();
        let broken = txn.query_all_raw(query(&check.broken)).await?;
        for row in broken.iter().take(LISTED) {
            audit.violations.push(violation(check.name, columns::lossy(row, "detail")));
        }
        if broken.len() > LISTED {
            audit.violations.push(violation(check.name, format!("and {} more", broken.len() - LISTED)));
        }
    }
    audit.uncharged = uncharged(&txn, Closed::Since(0)).await?;
    txn.rollback().await?;
    if stop() {
        return Ok(None);
    }
    audit.checked += 1;
    audit.violations.extend(unique_key(db).await?);
    let Some(chain) = record::verify_until(db, &stop).await? else { return Ok(None) };
    audit.checked += chain.rows;
    audit.violations.extend(chain.broken.map(|id| {
        let detail = format!(
            "row {id} of billing_job_audit, which says who changed what, is not what was written, or the row before it is gone"
        );
        violation("record_chain", detail)
    }));
    Ok(Some(audit))
}

fn violation(check: &str, detail: String) -> Violation {
    Violation { check: check.to_owned(), detail }
}

/// The key of charges is there and refuses a second charge of the same hour: tried, and rolled back.
async fn unique_key(db: &DatabaseConnection) -> Result<Option<Violation>, DbErr> {
    let txn = begin(db).await?;
    let again = "INSERT INTO billing_charges SELECT * FROM billing_charges LIMIT 1";
    let result = txn.execute_raw(statement(&txn, again, [])).await;
    txn.rollback().await?;
    match result {
        Ok(inserted) if inserted.rows_affected() == 0 => Ok(None),
        Ok(_) => {
            Ok(Some(violation("unique_key", "the same hour of an instance can be charged twice".to_owned())))
        }
        // Unique violation, on PostgreSQL and on SQLite.
        Err(error) if matches!(code(&error).as_deref(), Some("23505" | "1555" | "2067")) => Ok(None),
        // A login that only reads cannot try it: the catalog has to do.
        Err(error) if code(&error).as_deref() == Some("42501") => unique_key_by_catalog(db).await,
        Err(error) => Err(error),
    }
}

async fn unique_key_by_catalog(db: &DatabaseConnection) -> Result<Option<Violation>, DbErr> {
    let sql = "SELECT 1 AS found FROM pg_index
                WHERE indrelid = to_regclass('billing_charges') AND indisunique AND indisvalid AND indpred IS NULL
                  AND indkey::text = (SELECT string_agg(attnum::text, ' ' ORDER BY attname DESC) FROM pg_attribute
                                       WHERE attrelid = indrelid AND attname IN ('period_start', 'instance_id'))";
    let found = query_one(db, statement(db, sql, [])).await?;
    let missing =
        || violation("unique_key", "no unique index on the hour and the instance of a charge".to_owned());
    Ok(found.is_none().then(missing))
}

/// What the two databases spell differently.
#[derive(Clone, Copy)]
struct Words {
    sqlite: bool,
}

impl Words {
    fn choose(self, sqlite: String, postgres: String) -> String {
        if self.sqlite { sqlite } else { postgres }
    }

    /// Where the charge `c` ends.
    fn end(self) -> String {
        let sqlite = "(c.period_start + c.hours * 3600000000)".to_owned();
        self.choose(sqlite, "(c.period_start + c.hours * interval '1 hour')".to_owned())
    }

    /// The whole hours from one instant of ours to a later one.
    fn hours_between(self, from: &str, until: &str) -> String {
        let postgres = format!("ceil(date_part('epoch', {until} - {from}) / 3600)");
        self.choose(format!("(({until} - {from} + 3599999999) / 3600000000)"), postgres)
    }

    /// An amount of the panel's in ten-thousandths.
    fn money(self, column: &str) -> String {
        self.choose(column.to_owned(), format!("({column} * 10000)"))
    }

    /// A number whose product with another may be larger than 64 bits.
    fn wide(self, column: &str) -> String {
        self.choose(column.to_owned(), format!("{column}::numeric"))
    }

    /// An instant of the panel's, to be compared with ours.
    fn at(self, column: &str) -> String {
        self.choose(sqlite_micros(column), column.to_owned())
    }

    /// An instant of PostgreSQL as the panel knows it, which reckons in milliseconds.
    fn panels(self, instant: &str) -> String {
        self.choose(instant.to_owned(), milliseconds(instant))
    }

    /// Whether an amount of the ledger is one, and counted in its sums.
    fn is_amount(self, column: &str) -> String {
        self.choose(is_sqlite_amount(column), is_postgres_amount(column))
    }

    /// A number in the metadata of the ledger row `t`, as text; NULL if it is none.
    fn metadata(self, key: &str) -> String {
        // SQLite would make binary floating point of it.
        let sqlite = format!("CASE WHEN json_valid(t.metadata) THEN t.metadata -> '$.{key}' END");
        self.choose(sqlite, format!("t.metadata ->> '{key}'"))
    }

    /// A figure in the details of the run `r`, as text.
    fn run(self, key: &str) -> String {
        let sqlite =
            format!("CASE WHEN json_valid(r.details) THEN CAST(r.details ->> '$.{key}' AS TEXT) END");
        self.choose(format!("({sqlite})"), format!("(r.details ->> '{key}')"))
    }

    /// A decimal number in a text as ten-thousandths, exactly; NULL if it is none.
    fn amount_of_text(self, text: &str) -> String {
        let whole = format!("substr({text}, 1, instr({text} || '.', '.') - 1)");
        let fraction = format!("rtrim(substr({text}, instr({text} || '.', '.') + 1), '0')");
        let sqlite = format!(
            "CASE WHEN {text} NOT GLOB '*[^-.0-9]*' AND length({whole}) BETWEEN 1 AND 16 AND length({fraction}) <= 4
                  THEN CAST({whole} || substr({fraction} || '0000', 1, 4) AS INTEGER) END"
        );
        let number = "^-?[0-9]{1,20}([.][0-9]{1,20})?$";
        let postgres = format!("CASE WHEN {text} ~ '{number}' THEN {text}::numeric * 10000 END");
        self.choose(sqlite, postgres)
    }

    /// The entries of a JSON object, as `key` and `value`.
    fn each(self, object: &str) -> String {
        self.choose(format!("json_each({object})"), format!("jsonb_each({object})"))
    }

    /// A value of the entry `e`, as text; NULL if there is none.
    fn entry(self, key: &str) -> String {
        let sqlite = format!("(CASE WHEN e.type = 'object' THEN CAST(e.value ->> '$.{key}' AS TEXT) END)");
        self.choose(sqlite, format!("(e.value ->> '{key}')"))
    }

    /// A count in the entry `e`.
    fn figure(self, key: &str) -> String {
        self.count_of_text(&self.entry(key))
    }

    /// A decimal number in the entry `e`, in ten-thousandths.
    fn decimal(self, key: &str) -> String {
        self.amount_of_text(&self.entry(key))
    }

    /// A count in a text; NULL if it is none.
    fn count_of_text(self, text: &str) -> String {
        let sqlite = format!("CASE WHEN {text} NOT GLOB '*[^0-9]*' THEN CAST({text} AS INTEGER) END");
        self.choose(sqlite, format!("CASE WHEN {text} ~ '^[0-9]{{1,20}}$' THEN {text}::numeric END"))
    }

    /// Where the next charge of the instance `i` with the meter `m` begins.
    fn start(self) -> String {
        let (billed, created) = (self.at("i.last_billed_at"), self.at("i.created_at"));
        let later = self.choose("max".to_owned(), "greatest".to_owned());
        format!(
            "CASE WHEN m.billed_through IS NULL THEN {later}(coalesce({billed}, {created}), coalesce({created}, {billed}))
                  ELSE {later}(coalesce({billed}, m.billed_through), m.billed_through) END"
        )
    }

    fn an_hour_before(self, instant: &str) -> String {
        self.choose(format!("{instant} - 3600000000"), format!("{instant} - interval '1 hour'"))
    }

    fn now(self) -> &'static str {
        if self.sqlite { SQLITE_NOW } else { "now()" }
    }
}
