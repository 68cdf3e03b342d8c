//! Small fleets to bill, and readers of the results, with one interface for every kind of database.
//!
//! Amounts are ten-thousandths of the wallet's currency wherever they are integers, and decimal text where a person
//! writes them. What differs between the databases (ids, money, instants) is converted in `Row` and the readers here.

use std::fmt::Display;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, QueryResult, Statement, TransactionTrait, Value};
use uuid::Uuid;

use crate::{ChargeRow, CycleRow, Db, HoldRow, LedgerRow};

/// Decimals of an amount.
const AMOUNT_SCALE: u32 = 4;
/// Decimals of an hourly backup price.
const HOURLY_SCALE: u32 = 6;

/// An amount of money in ten-thousandths, made from these or from decimal text such as `"-7.25"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount(pub i64);

impl From<i64> for Amount {
    fn from(ten_thousandths: i64) -> Self {
        Self(ten_thousandths)
    }
}

impl From<&str> for Amount {
    fn from(decimal: &str) -> Self {
        Self(units(decimal, AMOUNT_SCALE))
    }
}

/// A plan to be seeded. Prices are decimal text.
#[derive(Clone, Debug)]
pub struct Plan {
    base: Option<i64>,
    markup: Option<i64>,
    backup_hourly: i64,
    provider_plan_id: String,
}

impl Plan {
    /// A plan with this base price a month, no markup, and backups that cost nothing.
    #[must_use]
    pub fn monthly(base: &str) -> Self {
        Self { base: Some(units(base, AMOUNT_SCALE)), ..Self::unpriced() }
    }

    /// A plan whose base price is NULL.
    #[must_use]
    pub fn unpriced() -> Self {
        Self {
            base: None,
            markup: Some(0),
            backup_hourly: 0,
            provider_plan_id: format!("plan-{}", Uuid::new_v4()),
        }
    }

    /// With this markup a month.
    #[must_use]
    pub fn markup(self, markup: &str) -> Self {
        Self { markup: Some(units(markup, AMOUNT_SCALE)), ..self }
    }

    /// With this price of backups an hour, of up to six decimals. G1 has no place for it: see [`Db::has_backups`].
    #[must_use]
    pub fn backup_hourly(self, price: &str) -> Self {
        Self { backup_hourly: units(price, HOURLY_SCALE), ..self }
    }

    /// With this name at the provider, which an instance may refer to instead of the id.
    #[must_use]
    pub fn provider_plan_id(self, id: &str) -> Self {
        Self { provider_plan_id: id.into(), ..self }
    }
}

/// An instance to be seeded: running, never billed, labelled by its own id.
#[derive(Clone, Debug)]
pub struct Instance {
    org: Uuid,
    plan: String,
    label: Option<String>,
    status: &'static str,
    created_at: DateTime<Utc>,
    last_billed_at: Option<DateTime<Utc>>,
    backups: Option<&'static str>,
}

impl Instance {
    /// An instance of this organization on this plan. The plan is named by its id or by its provider's name for it.
    pub fn new(org: Uuid, plan: impl Display, created_at: DateTime<Utc>) -> Self {
        let plan = plan.to_string();
        Self { org, plan, label: None, status: "running", created_at, last_billed_at: None, backups: None }
    }

    /// Billed up to this instant.
    #[must_use]
    pub fn billed(self, last_billed_at: DateTime<Utc>) -> Self {
        Self { last_billed_at: Some(last_billed_at), ..self }
    }

    /// With this label.
    #[must_use]
    pub fn label(self, label: &str) -> Self {
        Self { label: Some(label.into()), ..self }
    }

    /// With this status.
    #[must_use]
    pub fn status(self, status: &'static str) -> Self {
        Self { status, ..self }
    }

    /// Backed up `daily`, `weekly` (the panel's default) or `none`. G1 has no place for it.
    #[must_use]
    pub fn backups(self, frequency: &'static str) -> Self {
        Self { backups: Some(frequency), ..self }
    }
}

/// Seeds and reads one database, past every grant and policy.
///
/// Each method panics when the database refuses.
#[derive(Debug)]
pub struct Fleet<'a> {
    db: &'a Db,
}

impl<'a> Fleet<'a> {
    /// The fleet of this database.
    #[must_use]
    pub fn new(db: &'a Db) -> Self {
        Self { db }
    }

    /// A new organization without a wallet.
    pub async fn organization(&self) -> Uuid {
        let (owner, org) = (Uuid::new_v4(), Uuid::new_v4());
        let email = format!("{owner}@example.com");
        self.row("users")
            .id("id", owner)
            .text("email", email)
            .text("name", "Owner")
            .insert_into(self.db)
            .await;
        let row = self.row("organizations").id("id", org).id("owner_id", owner);
        row.text("name", "Organization").text("slug", org.to_string()).insert_into(self.db).await;
        org
    }

    /// A new organization with this much in its wallet.
    pub async fn wallet(&self, balance: impl Into<Amount>) -> Uuid {
        let org = self.organization().await;
        self.wallet_of(org, balance).await;
        org
    }

    /// One more wallet for an organization. The panel's tables permit two, although that is a mistake.
    pub async fn wallet_of(&self, org: Uuid, balance: impl Into<Amount>) {
        let row = self.row("wallets").id("id", Uuid::new_v4()).id("organization_id", org);
        row.money("balance", Some(balance.into().0), AMOUNT_SCALE).insert_into(self.db).await;
    }

    /// A new plan.
    pub async fn plan(&self, plan: Plan) -> Uuid {
        let id = Uuid::new_v4();
        let mut row = self.row("vps_plans").id("id", id).text("name", "Plan");
        row = row.text("provider_plan_id", plan.provider_plan_id);
        row =
            row.money("base_price", plan.base, AMOUNT_SCALE).money("markup_price", plan.markup, AMOUNT_SCALE);
        if self.db.has_backups() {
            row = row.money("backup_price_hourly", Some(plan.backup_hourly), HOURLY_SCALE);
        }
        row.insert_into(self.db).await;
        id
    }

    /// A new instance.
    pub async fn instance(&self, instance: Instance) -> Uuid {
        let id = Uuid::new_v4();
        let mut row = self.row("vps_instances").id("id", id).id("organization_id", instance.org);
        row = row.text("plan_id", instance.plan).text("provider_instance_id", id.to_string());
        row = row
            .text("label", instance.label.unwrap_or_else(|| id.to_string()))
            .text("status", instance.status);
        row =
            row.time("created_at", Some(instance.created_at)).time("last_billed_at", instance.last_billed_at);
        if let (true, Some(frequency)) = (self.db.has_backups(), instance.backups) {
            row = row.text("backup_frequency", frequency);
        }
        row.insert_into(self.db).await;
        id
    }

    /// Money paid in, as the panel books it: the wallet and one ledger row, together.
    pub async fn top_up(&self, org: Uuid, amount: impl Into<Amount>) {
        let amount = amount.into().0;
        let row = self.row("payment_transactions").id("id", Uuid::new_v4()).id("organization_id", org);
        let row = row.money("amount", Some(amount), AMOUNT_SCALE).text("payment_method", "paypal");
        let row = row.text("payment_provider", "paypal").text("status", "completed");
        let row = row.text("description", "Wallet top-up");
        let credit = format!(
            "UPDATE wallets SET balance = balance + {} WHERE organization_id = $2",
            self.amount_slot(1)
        );
        let credit = self.statement(&credit, [amount.into(), self.id(org)]);
        let transaction = self.db.admin().begin().await.expect("a top-up begins");
        transaction.execute_raw(credit).await.expect("a top-up credits the wallet");
        transaction.execute_raw(row.statement()).await.expect("a top-up is booked");
        transaction.commit().await.expect("a top-up is kept");
    }

    /// Changes the monthly base price of a plan; `None` is NULL.
    pub async fn reprice(&self, plan: Uuid, base: Option<&str>) {
        let base: Option<i64> = base.map(|base| units(base, AMOUNT_SCALE));
        let sql = format!("UPDATE vps_plans SET base_price = {} WHERE id = $2", self.amount_slot(1));
        self.execute(&sql, [base.into(), self.id(plan)]).await;
    }

    /// Transfers the instance to another organization, as the panel's administrator does.
    pub async fn transfer(&self, instance: Uuid, org: Uuid) {
        let sql = "UPDATE vps_instances SET organization_id = $2 WHERE id = $1";
        self.execute(sql, [self.id(instance), self.id(org)]).await;
    }

    /// Deletes an instance as the panel does: its row, and by cascade its cycles.
    pub async fn delete(&self, instance: Uuid) {
        self.execute("DELETE FROM vps_instances WHERE id = $1", [self.id(instance)]).await;
    }

    /// What the organization's only wallet holds, in ten-thousandths.
    pub async fn balance(&self, org: Uuid) -> i64 {
        let balances = self.balances(org).await;
        assert_eq!(balances.len(), 1, "organization {org} has not one wallet: {balances:?}");
        balances[0]
    }

    /// What each wallet of the organization holds, smallest first.
    pub async fn balances(&self, org: Uuid) -> Vec<i64> {
        let sql = format!(
            "SELECT {} AS amount FROM wallets WHERE organization_id = $1 ORDER BY balance",
            self.amount_of("balance")
        );
        let rows = self.query(&sql, [self.id(org)]).await;
        rows.iter().map(|row| get(row, "amount")).collect()
    }

    /// The organization's ledger, oldest first.
    pub async fn ledger(&self, org: Uuid) -> Vec<LedgerRow> {
        let sql = format!(
            "SELECT {} AS amount_units, currency, payment_method, payment_provider, status, description,
                 CAST(metadata AS text) AS metadata
             FROM payment_transactions WHERE organization_id = $1 ORDER BY created_at, description, id",
            self.amount_of("amount")
        );
        let rows = self.query(&sql, [self.id(org)]).await;
        rows.iter()
            .map(|row| LedgerRow {
                amount: get(row, "amount_units"),
                currency: get(row, "currency"),
                method: get(row, "payment_method"),
                provider: get(row, "payment_provider"),
                status: get(row, "status"),
                description: get::<Option<String>>(row, "description").unwrap_or_default(),
                metadata: json(row, "metadata"),
            })
            .collect()
    }

    /// The instance's cycles in the order of their periods.
    pub async fn cycles(&self, instance: Uuid) -> Vec<CycleRow> {
        let sql = format!(
            "SELECT billing_period_start, billing_period_end, {} AS rate_units, {} AS total_units, status,
                 CAST(payment_transaction_id AS text) AS payment_transaction_id, CAST(metadata AS text) AS metadata
             FROM vps_billing_cycles WHERE vps_instance_id = $1 ORDER BY billing_period_start, id",
            self.amount_of("hourly_rate"),
            self.amount_of("total_amount")
        );
        let rows = self.query(&sql, [self.id(instance)]).await;
        rows.iter()
            .map(|row| CycleRow {
                start: get(row, "billing_period_start"),
                end: get(row, "billing_period_end"),
                hourly_rate: get(row, "rate_units"),
                total: get(row, "total_units"),
                status: get(row, "status"),
                payment_transaction_id: get::<Option<String>>(row, "payment_transaction_id")
                    .map(|id| id.parse().expect("an id is a UUID")),
                metadata: json(row, "metadata"),
            })
            .collect()
    }

    /// Our charges of the instance in the order of their hours. They outlive the instance.
    pub async fn charges(&self, instance: Uuid) -> Vec<ChargeRow> {
        let start = match self.db.backend() {
            DbBackend::Sqlite => "period_start",
            _ => "CAST(extract(epoch FROM period_start) * 1000000 AS bigint)",
        };
        let sql = format!(
            "SELECT {start} AS start_micros, CAST(hours AS bigint) AS hours, amount
             FROM billing_charges WHERE instance_id = $1 ORDER BY period_start"
        );
        let rows = self.query(&sql, [self.id(instance)]).await;
        rows.iter()
            .map(|row| ChargeRow {
                start: DateTime::from_timestamp_micros(get(row, "start_micros")).expect("a time"),
                hours: get(row, "hours"),
                amount: get(row, "amount"),
            })
            .collect()
    }

    /// Every hold that the instance ever had, oldest first. They outlive the instance.
    pub async fn holds(&self, instance: Uuid) -> Vec<HoldRow> {
        let sql = "SELECT reason, detail, hours_due, amount_due, closed_at IS NULL AS is_open
             FROM billing_holds WHERE instance_id = $1 ORDER BY id";
        let rows = self.query(sql, [self.id(instance)]).await;
        rows.iter()
            .map(|row| HoldRow {
                reason: get(row, "reason"),
                detail: get::<Option<String>>(row, "detail").unwrap_or_default(),
                hours: get(row, "hours_due"),
                amount: get(row, "amount_due"),
                open: get(row, "is_open"),
            })
            .collect()
    }

    /// The end of the last period that the instance was billed for.
    pub async fn last_billed_at(&self, instance: Uuid) -> Option<DateTime<Utc>> {
        let rows =
            self.query("SELECT last_billed_at FROM vps_instances WHERE id = $1", [self.id(instance)]).await;
        get(rows.first().expect("the instance exists"), "last_billed_at")
    }

    async fn query<const N: usize>(&self, sql: &str, values: [Value; N]) -> Vec<QueryResult> {
        let statement = self.statement(sql, values);
        self.db.admin().query_all_raw(statement).await.unwrap_or_else(|error| panic!("{error}, in:\n{sql}"))
    }

    async fn execute<const N: usize>(&self, sql: &str, values: [Value; N]) {
        let statement = self.statement(sql, values);
        let done = self.db.admin().execute_raw(statement).await;
        let done = done.unwrap_or_else(|error| panic!("{error}, in:\n{sql}"));
        assert_eq!(done.rows_affected(), 1, "one row is meant by:\n{sql}");
    }

    fn statement<const N: usize>(&self, sql: &str, values: [Value; N]) -> Statement {
        Statement::from_sql_and_values(self.db.backend(), sql, values)
    }

    fn row(&self, table: &'static str) -> Row {
        let backend = self.db.backend();
        Row { backend, table, columns: Vec::new(), slots: Vec::new(), values: Vec::new() }
    }

    fn id(&self, id: Uuid) -> Value {
        id_value(self.db.backend(), id)
    }

    fn amount_slot(&self, number: usize) -> String {
        money_slot(self.db.backend(), number, AMOUNT_SCALE)
    }

    /// The expression that reads a column of money in ten-thousandths.
    fn amount_of(&self, column: &str) -> String {
        match self.db.backend() {
            DbBackend::Sqlite => column.into(),
            _ => format!("CAST({column} * 10000 AS bigint)"),
        }
    }
}

/// A row about to be inserted.
struct Row {
    backend: DbBackend,
    table: &'static str,
    columns: Vec<&'static str>,
    slots: Vec<String>,
    values: Vec<Value>,
}

impl Row {
    fn id(self, column: &'static str, id: Uuid) -> Self {
        let value = id_value(self.backend, id);
        self.plain(column, value)
    }

    fn text(self, column: &'static str, text: impl Into<String>) -> Self {
        self.plain(column, text.into().into())
    }

    fn time(self, column: &'static str, at: Option<DateTime<Utc>>) -> Self {
        self.plain(column, at.into())
    }

    fn money(self, column: &'static str, units: Option<i64>, scale: u32) -> Self {
        let slot = money_slot(self.backend, self.values.len() + 1, scale);
        self.with(column, slot, units.into())
    }

    fn plain(self, column: &'static str, value: Value) -> Self {
        let slot = format!("${}", self.values.len() + 1);
        self.with(column, slot, value)
    }

    fn with(mut self, column: &'static str, slot: String, value: Value) -> Self {
        self.columns.push(column);
        self.slots.push(slot);
        self.values.push(value);
        self
    }

    fn statement(self) -> Statement {
        let (columns, slots) = (self.columns.join(", "), self.slots.join(", "));
        let sql = format!("INSERT INTO {} ({columns}) VALUES ({slots})", self.table);
        Statement::from_sql_and_values(self.backend, sql, self.values)
    }

    async fn insert_into(self, db: &Db) {
        let table = self.table;
        if let Err(error) = db.admin().execute_raw(self.statement()).await {
            panic!("seeding {table}: {error}");
        }
    }
}

/// An id is text on SQLite.
fn id_value(backend: DbBackend, id: Uuid) -> Value {
    match backend {
        DbBackend::Sqlite => id.to_string().into(),
        _ => id.into(),
    }
}

/// The expression that stores the `number`th value, an integer, as money of so many decimals.
fn money_slot(backend: DbBackend, number: usize, scale: u32) -> String {
    match backend {
        DbBackend::Sqlite => format!("${number}"),
        _ => format!("(${number} / {}.0)", 10_i64.pow(scale)),
    }
}

/// Decimal text in units of `10^-scale`, exactly.
fn units(decimal: &str, scale: u32) -> i64 {
    let (digits, sign) = decimal.strip_prefix('-').map_or((decimal, 1), |digits| (digits, -1));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let width = scale as usize;
    let parsed = format!("{whole}{fraction:0<width$}").parse::<i64>();
    match parsed {
        Ok(units) if fraction.len() <= width && !whole.is_empty() => sign * units,
        _ => panic!("`{decimal}` is not a decimal number of at most {scale} decimals"),
    }
}

fn get<T: sea_orm::TryGetable>(row: &QueryResult, column: &str) -> T {
    row.try_get("", column).unwrap_or_else(|error| panic!("reading `{column}`: {error}"))
}

fn json(row: &QueryResult, column: &str) -> serde_json::Value {
    let text: Option<String> = get(row, column);
    text.map_or(serde_json::Value::Null, |text| serde_json::from_str(&text).expect("a jsonb column is JSON"))
}

#[cfg(test)]
mod tests {
    use super::units;

    #[test]
    fn decimal_text_becomes_whole_units() {
        for (text, scale, expected) in [
            ("100", 4, 1_000_000),
            ("100.00", 4, 1_000_000),
            ("0.0001", 4, 1),
            ("-7.25", 4, -72_500),
            ("0.006849", 6, 6849),
        ] {
            assert_eq!(units(text, scale), expected, "{text}");
        }
    }

    #[test]
    #[should_panic(expected = "`0.00001` is not a decimal number of at most 4 decimals")]
    fn excess_digit_is_rejected() {
        units("0.00001", 4);
    }
}
