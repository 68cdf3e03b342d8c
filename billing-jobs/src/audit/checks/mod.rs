//! The invariants, each as a query for the rows that break it, and the action of the operator that resolves it.

use super::dialect::Dialect;

/// How an operator resolves what neither a program nor a panel does.
pub(super) const TAMPERED: &str = "evidence of tampering, which no command clears: only the owner of the tables can do this, past the \
                                   triggers; keep the database as it is and compare it with a backup";

const CHARGES: &str = "SELECT count(*) AS n FROM billing_charges";
const METERS: &str = "SELECT count(*) AS n FROM billing_meters";

/// The first batch of the last finished run.
const LAST_RUN: &str = include_str!("last_run.sql");

pub(super) struct Check {
    pub(super) name: &'static str,
    /// How an operator resolves it.
    pub(super) resolve: &'static str,
    /// Counts the rows that are compared with it.
    pub(super) count: &'static str,
    /// `detail` of each row that breaks it.
    pub(super) broken: String,
}

/// All checks, in the order in which they are performed.
pub(super) fn checks(d: Dialect) -> Vec<Check> {
    let mut checks = charges(d);
    checks.extend(meters(d));
    checks.extend(panel(d));
    if d.sqlite {
        checks.push(references());
    }
    checks.extend(wallets(d));
    checks.extend(totals(d));
    checks.push(due(d));
    checks.extend(prepaid(d));
    checks
}

/// The ledger of hours itself.
fn charges(d: Dialect) -> Vec<Check> {
    vec![
        Check {
            name: "charge_arithmetic",
            resolve: TAMPERED,
            count: CHARGES,
            broken: format!(
                include_str!("charge_arithmetic.sql"),
                wide_rate = d.wide("rate"),
                wide_amount = d.wide("amount"),
            ),
        },
        Check {
            name: "charges_contiguous",
            resolve: "a gap: the hours were not charged and cannot be any more; record that with a cycle of 0.00 over them whose status \
                      is `refunded`. Charges that overlap are evidence of tampering",
            count: CHARGES,
            broken: format!(
                include_str!("charges_contiguous.sql"),
                gap = d.hours_between("x.ended", "x.starts"),
                cycle_start = d.at("y.billing_period_start"),
                cycle_end = d.at("y.billing_period_end"),
                end = d.end(),
                no_time = d.no_time(),
            ),
        },
        Check {
            name: "charges_within_life",
            resolve: "correct `created_at` of the instance, or refund the charge in the panel and mark its cycle `refunded`. If it ends \
                      in the future, correct the clock of the database server",
            count: CHARGES,
            broken: format!(
                include_str!("charges_within_life.sql"),
                a_second_after_start = d.a_second_after("c.period_start"),
                created = d.at("i.created_at"),
                cycle_start = d.panels(&d.at("y.billing_period_start")),
                charge_start = d.panels("c.period_start"),
                end = d.end(),
                now = d.now(),
            ),
        },
    ]
}

/// What is carried from charge to charge.
fn meters(d: Dialect) -> Vec<Check> {
    vec![
        Check {
            name: "watermark",
            resolve: "run `billing-daemon bill`, which corrects the anchor of the panel. A meter that is behind its charges is evidence \
                      of tampering",
            count: METERS,
            broken: format!(
                include_str!("watermark.sql"),
                last_run = LAST_RUN,
                is_unseen = d.is_unseen(),
                an_hour_before = d.an_hour_before("b.as_of"),
                anchor = d.anchor(),
                panels_anchor = d.panels(&d.anchor()),
                panels_last = d.panels("c.panel_ended"),
                panels_watermark = d.panels("m.billed_through"),
                end = d.end(),
            ),
        },
        Check {
            name: "meter_carry",
            resolve: TAMPERED,
            count: METERS,
            broken: include_str!("meter_carry.sql").to_owned(),
        },
        Check {
            name: "charge_without_meter",
            resolve: TAMPERED,
            count: "SELECT count(DISTINCT instance_id) AS n FROM billing_charges",
            broken: include_str!("charge_without_meter.sql").to_owned(),
        },
    ]
}

/// What the tables of the panel contain of the charges.
fn panel(d: Dialect) -> Vec<Check> {
    vec![
        Check {
            name: "charge_in_ledger",
            resolve: "evidence of tampering: the panel neither deletes a debit nor changes its amount; restore the row of \
                      payment_transactions from a backup",
            count: CHARGES,
            broken: format!(include_str!("charge_in_ledger.sql"), amount = d.money("t.amount")),
        },
        Check {
            name: "charge_in_cycles",
            resolve: "delete a cycle with the same start and another amount, set `last_billed_at` of the instance to the start of the \
                      charge and run `billing-daemon bill`, which writes the missing cycle",
            count: CHARGES,
            broken: format!(
                include_str!("charge_in_cycles.sql"),
                charge_start = d.panels("c.period_start"),
                charge_amount = d.wide("c.amount"),
                cycle_start = d.panels(&d.at("y.billing_period_start")),
                cycle_amount = d.money("y.total_amount"),
                no_time = d.no_time(),
                panels_anchor = d.panels(&d.anchor()),
                panels_end = d.panels(&d.end()),
            ),
        },
        Check {
            name: "hours_billed_twice",
            resolve: "refund one of the two cycles in the panel and mark it `refunded`; run `billing-daemon guard install` if the panel \
                      charged next to the daemon",
            count: "SELECT count(*) AS n FROM vps_billing_cycles WHERE status = 'billed'",
            broken: format!(
                include_str!("hours_billed_twice.sql"),
                start = d.at("y.billing_period_start"),
                end = d.at("y.billing_period_end"),
                a_second_later = d.a_second_after("x.starts"),
            ),
        },
        Check {
            name: "ledger_chain",
            resolve: "evidence of tampering: the panel never changes the balances of a debit; restore the row of payment_transactions \
                      from a backup",
            count: "SELECT count(*) AS n FROM billing_charges WHERE payment_transaction_id IS NOT NULL",
            broken: format!(
                include_str!("ledger_chain.sql"),
                amount = d.money("amount"),
                balance_before = d.metadata("balance_before"),
                balance_after = d.metadata("balance_after"),
                before = d.amount_of_text("balance_before"),
                after = d.amount_of_text("balance_after"),
            ),
        },
    ]
}

/// What foreign keys ensure on PostgreSQL.
fn references() -> Check {
    Check {
        name: "cycle_references",
        resolve: "restore the row of payment_transactions or of vps_instances from a backup, or delete the cycle if it belongs to no \
                  instance of yours",
        count: "SELECT count(*) AS n FROM vps_billing_cycles",
        broken: include_str!("cycle_references.sql").to_owned(),
    }
}

fn wallets(d: Dialect) -> Vec<Check> {
    vec![
        Check {
            name: "wallet_balance",
            resolve: "find who changed the balance without a row of payment_transactions, or the other way round; then correct the \
                      balance, or add a completed row over the difference and leave the balance as it is",
            count: "SELECT count(*) AS n FROM billing_wallet_openings",
            broken: format!(
                include_str!("wallet_balance.sql"),
                balance = d.money("w.balance"),
                amount = d.money("t.amount"),
                is_amount = d.is_amount("t.amount"),
            ),
        },
        Check {
            name: "ledger_amount",
            resolve: "correct the amount of the row in payment_transactions: a number that a wallet can hold",
            count: "SELECT count(*) AS n FROM payment_transactions WHERE status = 'completed'",
            broken: format!(include_str!("ledger_amount.sql"), is_amount = d.is_amount("t.amount")),
        },
        Check {
            name: "wallet_without_opening",
            resolve: "run `billing-daemon adopt`, which records what the wallet holds now",
            count: "SELECT count(DISTINCT organization_id) AS n FROM billing_charges",
            broken: include_str!("wallet_without_opening.sql").to_owned(),
        },
    ]
}

/// The sums of batches and runs.
fn totals(d: Dialect) -> Vec<Check> {
    let currencies = d.choose(
        "CASE WHEN json_valid(r.details) THEN r.details -> '$.currencies' END".to_owned(),
        "CASE WHEN jsonb_typeof(r.details -> 'currencies') = 'object' THEN r.details -> 'currencies' ELSE '{}' END"
            .to_owned(),
    );
    vec![
        Check {
            name: "batch_totals",
            resolve: TAMPERED,
            count: "SELECT count(*) AS n FROM billing_batches",
            broken: format!(
                include_str!("batch_totals.sql"),
                charges = d.figure("charges"),
                hours = d.figure("hours"),
                amount = d.figure("amount"),
                each = d.each("b.currencies"),
            ),
        },
        Check {
            name: "charge_without_batch",
            resolve: TAMPERED,
            count: "SELECT count(DISTINCT batch_id) AS n FROM billing_charges",
            broken: include_str!("charge_without_batch.sql").to_owned(),
        },
        Check {
            name: "run_totals",
            resolve: TAMPERED,
            count: "SELECT count(*) AS n FROM scheduler_runs WHERE job = $1 AND status = 'done'",
            broken: format!(
                include_str!("run_totals.sql"),
                charged = d.count_of_text(&d.run("charged")),
                hours = d.count_of_text(&d.run("hours")),
                of_currency_hours = d.figure("hours"),
                of_currency_amount = d.decimal("amount"),
                batch_hours = d.figure("hours"),
                batch_amount = d.figure("amount"),
                of_run = d.each(&currencies),
                of_batch = d.each("b.currencies"),
            ),
        },
    ]
}

/// The standings of the prepaid policy, and what it sends.
fn prepaid(d: Dialect) -> [Check; 6] {
    let count = "SELECT count(*) AS n FROM billing_standings";
    let six_hours = d.choose("21600000000".to_owned(), "interval '6 hours'".to_owned());
    [
        Check {
            name: "suspension_without_notices",
            resolve: "evidence of tampering, unless a backup was restored: `billing-daemon policy set ORGANIZATION --mode exempt` resumes \
                      the customer",
            count,
            broken: format!(include_str!("suspension_without_notices.sql"), six_hours = six_hours),
        },
        Check {
            name: "order_without_event",
            resolve: "run `billing-daemon prepaid reconcile`, which orders the wanted state again",
            count,
            broken: include_str!("order_without_event.sql").to_owned(),
        },
        Check {
            name: "acknowledged_order",
            resolve: "run `billing-daemon prepaid reconcile`, which orders the wanted state again, under a greater number",
            count,
            broken: include_str!("acknowledged_order.sql").to_owned(),
        },
        Check {
            name: "standing_facts",
            resolve: "the next run of the job `prepaid` corrects a standing that it checks; otherwise evidence of tampering",
            count,
            broken: include_str!("standing_facts.sql").to_owned(),
        },
        Check {
            name: "event_without_delivery",
            resolve: "evidence of tampering: the daemon deletes a delivery with its event alone; `billing-daemon prepaid reconcile` \
                      orders the wanted states again",
            count: "SELECT count(*) AS n FROM billing_events",
            broken: include_str!("event_without_delivery.sql").to_owned(),
        },
        Check {
            name: "notice_twice",
            resolve: "evidence of tampering: the primary key of billing_notices permits a level once in an episode",
            count: "SELECT count(*) AS n FROM billing_notices",
            broken: include_str!("notice_twice.sql").to_owned(),
        },
    ]
}

fn due(d: Dialect) -> Check {
    Check {
        name: "due_charged_or_held",
        resolve: "run `billing-daemon bill`; if the violation remains, it is a defect: make a support bundle",
        count: "SELECT count(*) AS n FROM vps_instances",
        broken: format!(
            include_str!("due_charged_or_held.sql"),
            last_run = LAST_RUN,
            start = d.start(),
            anchor = d.anchor(),
            is_unseen = d.is_unseen(),
            an_hour_before = d.an_hour_before("b.as_of"),
        ),
    }
}
