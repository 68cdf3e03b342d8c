//! What to write for a batch of wallets, decided from what was read under their locks: pure.

mod transfer;

use uuid::Uuid;

use super::{
    approvals::Approvals,
    id::Id,
    model::{
        AnchorRow, BeyondLimitRow, ChargeRow, Debit, HoldRow, Instance, MeterRow, Posting, RepairRow,
        Transfer, Wallet, WalletRow,
    },
    panel_time,
};
use crate::{
    currency::Currency,
    hold::{Hold, Reason},
    money::{Carry, HourlyRate, Money, WalletUnit, cost, covered_hours},
    period::{HOUR, Micros, RateSpan, Rates, whole_hours},
    price::PriceList,
};

/// How long the built-in biller of the panel may take from its debit to the cycle and the anchor, which it writes in a second
/// transaction. A repair in between would double the cycle.
pub(super) const SECOND_TRANSACTION: Micros = 5 * 60 * 1_000_000;

/// What a decision depends on besides the rows.
#[derive(Debug)]
pub(super) struct BillingTerms<'a> {
    /// Hours that ended by then are due.
    pub(super) as_of: Micros,
    /// The prices of the plans, and those that earlier runs saw.
    pub(super) prices: &'a PriceList,
    /// What a wallet can hold.
    pub(super) unit: WalletUnit,
    /// More due hours than these are held until approved.
    pub(super) max_catch_up_hours: i64,
    /// The approvals in force.
    pub(super) approvals: &'a Approvals,
    /// Why the database refused the instances of this batch, if it did: they are held.
    pub(super) refused: Option<&'a str>,
}

/// Hours of one instance that can be priced.
struct DueHours {
    start: Micros,
    hours: i64,
    /// Of these, the ones that no run has evaluated: the others were held because the wallet did not cover them.
    unseen_hours: i64,
    carry: Carry,
    rates: Rates,
}

impl DueHours {
    fn is_free(&self) -> bool {
        self.rates.rate_spans(self.start, self.hours).all(|span| span.rate.total.0 == 0)
    }
}

/// Decides for one batch. `instances` are ordered by organization, and within one by age, oldest first.
#[must_use]
pub(super) fn decide<'a>(
    terms: &BillingTerms<'_>,
    wallets: &'a [Wallet],
    instances: &'a [Instance],
) -> Posting<'a> {
    let mut posting = Posting::for_batch(wallets.len(), instances.len());
    let mut by_organization: Vec<&Wallet> = wallets.iter().collect();
    by_organization.sort_by_key(|wallet| &wallet.organization);
    for of_one in instances.chunk_by(|one, next| one.organization == next.organization) {
        let organization = &of_one[0].organization;
        let first = by_organization.partition_point(|wallet| wallet.organization < *organization);
        let after =
            first + by_organization[first..].partition_point(|wallet| wallet.organization == *organization);
        let mut wallet_balance = WalletBalance::of(&by_organization[first..after]);
        for instance in of_one {
            decide_instance(terms, &mut posting, &mut wallet_balance, instance);
        }
        if let WalletBalance::Open { wallet, balance, .. } = wallet_balance
            && let Ok(before) = wallet.balance
            && before != balance
        {
            posting.wallets.push(WalletRow { wallet: wallet.id.clone(), before, after: balance });
            if !wallet.opened {
                posting.openings.push(wallet.id.clone());
            }
        }
    }
    posting
}

/// The money of one organization while its instances are charged.
enum WalletBalance<'a> {
    Open { wallet: &'a Wallet, currency: Currency, balance: Money },
    Shut { hold: Hold, currency: Option<Currency> },
}

impl<'a> WalletBalance<'a> {
    fn of(wallets: &[&'a Wallet]) -> Self {
        let shut = |reason, detail: String| Self::Shut { hold: Hold::new(reason, detail), currency: None };
        match wallets {
            [] => shut(Reason::NoWallet, "the organization has no wallet".to_owned()),
            [wallet] => match (&wallet.balance, &wallet.currency) {
                (Ok(balance), Ok(currency)) => Self::Open { wallet, currency: *currency, balance: *balance },
                (Err(hold), currency) => Self::Shut { hold: hold.clone(), currency: currency.clone().ok() },
                (Ok(_), Err(invalid)) => {
                    shut(Reason::InvalidCurrency, format!("wallet {}: {invalid}", wallet.id))
                }
            },
            several => shut(
                Reason::DuplicateWallets,
                format!("the organization has {} wallets; keep one", several.len()),
            ),
        }
    }

    fn currency(&self) -> Option<Currency> {
        match self {
            Self::Open { currency, .. } => Some(*currency),
            Self::Shut { currency, .. } => *currency,
        }
    }
}

fn decide_instance<'a>(
    terms: &BillingTerms<'_>,
    posting: &mut Posting<'a>,
    wallet_balance: &mut WalletBalance<'a>,
    instance: &'a Instance,
) {
    // Before the other side is done, nothing is written: not even a hold, which names the debtor.
    if let Some(Transfer::Pending) = instance.transfer {
        return;
    }
    if let Some(unreadable) = &instance.unreadable {
        // Its hours and their price are unknown; nothing is written until its row can be read.
        let hold = Hold::new(Reason::Unreadable, unreadable.as_str());
        hold_instance(posting, instance, &hold, None, None, wallet_balance.currency());
        return;
    }
    if let Some(Transfer::From { to, seen_at }) = &instance.transfer {
        transfer::settle_transfer(terms, posting, wallet_balance, instance, (to, *seen_at));
        return;
    }
    let due = match due_hours(terms, instance) {
        Ok(Some(due)) => due,
        Ok(None) => {
            match terms.refused {
                // The database may reject the repair of the anchor, so the anchor is left alone.
                Some(detail) => {
                    hold_instance(
                        posting,
                        instance,
                        &Hold::new(Reason::Failed, detail),
                        Some(0),
                        None,
                        wallet_balance.currency(),
                    );
                }
                None => not_due(terms, posting, instance),
            }
            return;
        }
        Err((hold, None)) => {
            // Nothing is known about its hours until the row is corrected.
            hold_instance(posting, instance, &hold, None, None, wallet_balance.currency());
            return;
        }
        Err((hold, hours)) => {
            touch_meter(terms, posting, instance);
            repair_anchor(terms, posting, instance);
            hold_instance(posting, instance, &hold, hours, None, wallet_balance.currency());
            return;
        }
    };
    let refused = terms.refused.map(|detail| Hold::new(Reason::Failed, detail));
    let mut cursor = ChargeCursor { at: due.start, carry: due.carry };
    let currency = wallet_balance.currency();
    let hold = refused.or_else(|| charge_due(terms, posting, wallet_balance, instance, &due, &mut cursor));
    let left = due.hours - (cursor.at - due.start) / HOUR;
    posting.totals.charged += u64::from(left < due.hours);
    write_meter(terms, posting, instance, &due, &cursor);
    move_anchor(terms, posting, instance, cursor.at);
    match hold {
        Some(hold) => {
            let amount = cost_of(&due, &cursor, left, terms.unit);
            hold_instance(posting, instance, &hold, Some(left), amount, currency);
        }
        None if instance.held.is_some() => posting.releases.push(instance.id.clone()),
        None => {}
    }
}

/// Charges the due hours that can be charged. Returns the hold of the hours that are left.
fn charge_due<'a>(
    terms: &BillingTerms<'_>,
    posting: &mut Posting<'a>,
    wallet_balance: &mut WalletBalance<'a>,
    instance: &'a Instance,
    due: &DueHours,
    cursor: &mut ChargeCursor,
) -> Option<Hold> {
    match wallet_balance {
        _ if due.is_free() => {
            let currency = wallet_balance.currency().unwrap_or(Currency::NONE);
            charge_what_is_free(posting, currency, instance, due, cursor);
            None
        }
        WalletBalance::Shut { hold, .. } => Some(hold.clone()),
        WalletBalance::Open { currency, balance, .. } => beyond_catch_up_limit(terms, posting, instance, due)
            .or_else(|| charge_what_is_covered(terms, posting, (*currency, balance), instance, due, cursor)),
    }
}

/// The hold of an instance with more hours due that no run has evaluated than the catch-up limit, unless they are approved.
fn beyond_catch_up_limit<'a>(
    terms: &BillingTerms<'_>,
    posting: &mut Posting<'a>,
    instance: &'a Instance,
    due: &DueHours,
) -> Option<Hold> {
    let limit = terms.max_catch_up_hours;
    if due.unseen_hours <= limit {
        return None;
    }
    let through = terms.approvals.approved_through(&instance.id, &instance.organization, due.start);
    // The hours since the approval count against the limit again.
    let approved = through.is_some_and(|through| due.hours - whole_hours(due.start, through) <= limit);
    let amount = cost_of(due, &ChargeCursor { at: due.start, carry: due.carry }, due.hours, terms.unit);
    posting.beyond_limit.push(BeyondLimitRow {
        instance,
        start: due.start,
        hours: due.hours,
        amount,
        approved,
    });
    let detail = || {
        format!(
            "{} hours are due, more than the {limit} that are charged without approval: \
             see `billing-daemon bill --dry-run --approve-catch-up {}`",
            due.unseen_hours, instance.id
        )
    };
    (!approved).then(|| Hold::new(Reason::CatchUpLimit, detail()))
}

/// How far the charges of one instance have come.
struct ChargeCursor {
    at: Micros,
    carry: Carry,
}

/// Records hours that cost nothing: they need neither a wallet nor an approval.
fn charge_what_is_free<'a>(
    posting: &mut Posting<'a>,
    currency: Currency,
    instance: &'a Instance,
    due: &DueHours,
    cursor: &mut ChargeCursor,
) {
    for span in due.rates.rate_spans(due.start, due.hours) {
        let RateSpan { hours, rate } = span;
        let charge = Charge { start: cursor.at, hours, rate, amount: Money(0), carry: cursor.carry };
        posting.add_charge(charge_row(currency, instance, due.hours, &charge, None));
        cursor.at += hours * HOUR;
    }
}

/// Charges from the oldest hour on until the wallet is empty. Returns the hold of the hours that are left.
fn charge_what_is_covered<'a>(
    terms: &BillingTerms<'_>,
    posting: &mut Posting<'a>,
    (currency, balance): (Currency, &mut Money),
    instance: &'a Instance,
    due: &DueHours,
    cursor: &mut ChargeCursor,
) -> Option<Hold> {
    for span in due.rates.rate_spans(due.start, due.hours) {
        let covered = covered_hours(*balance, span.rate.total, span.hours, cursor.carry, terms.unit);
        if covered > 0 {
            let Some((amount, carry)) = cost(span.rate.total, covered, cursor.carry, terms.unit) else {
                return Some(Hold::new(Reason::InvalidPrice, "the amount is larger than a wallet can hold"));
            };
            let before = *balance;
            *balance = Money(balance.0 - amount.0);
            let charge = Charge { start: cursor.at, hours: covered, rate: span.rate, amount, carry };
            let debit = (amount.0 > 0).then(|| Debit {
                id: Uuid::now_v7(),
                balance_before: before,
                balance_after: *balance,
            });
            posting.add_charge(charge_row(currency, instance, due.hours, &charge, debit));
            *cursor = ChargeCursor { at: cursor.at + covered * HOUR, carry };
        }
        if covered < span.hours {
            let detail = format!("the wallet holds {balance} {currency} and does not cover the next hour");
            return Some(Hold::new(Reason::InsufficientBalance, detail));
        }
    }
    None
}

struct Charge {
    start: Micros,
    hours: i64,
    rate: HourlyRate,
    amount: Money,
    carry: Carry,
}

fn charge_row<'a>(
    currency: Currency,
    instance: &'a Instance,
    elapsed_hours: i64,
    charge: &Charge,
    debit: Option<Debit>,
) -> ChargeRow<'a> {
    // On SQLite the cycles have no index by instance: the cycle of a charge is found by the id of its debit.
    let cycle = debit.as_ref().map_or_else(Uuid::now_v7, |debit| debit.id);
    ChargeRow {
        instance,
        currency,
        start: charge.start,
        hours: charge.hours,
        elapsed_hours,
        rate: charge.rate,
        amount: charge.amount,
        carry: charge.carry,
        debit,
        cycle: (!instance.gone).then_some(cycle),
    }
}

fn cost_of(due: &DueHours, from: &ChargeCursor, hours: i64, unit: WalletUnit) -> Option<Money> {
    due.rates.cost(from.at, hours, from.carry, unit)
}

/// The hours of `instance` that can be priced, or the hold and how many hours it concerns.
fn due_hours(terms: &BillingTerms<'_>, instance: &Instance) -> Result<Option<DueHours>, (Hold, Option<i64>)> {
    let (start, until) = if instance.gone {
        // Only its meter knows its price.
        let Some(meter) = &instance.meter else { return Ok(None) };
        (meter.billed_through, meter.seen_at)
    } else {
        let Instance { last_billed_at, created_at, meter, .. } = instance;
        let watermark = meter.as_ref().map(|meter| meter.billed_through);
        let start = panel_time::start(last_billed_at, created_at, watermark, terms.as_of);
        (start.map_err(|hold| (hold, None))?, terms.as_of)
    };
    let hours = whole_hours(start, until);
    if hours == 0 {
        return Ok(None);
    }
    let known = instance.meter.as_ref().and_then(|meter| meter.rates.clone());
    let rates = match (known, instance.gone) {
        (Some(rates), true) => rates,
        (None, true) => return Ok(None),
        (Some(mut rates), false) => {
            rates.see(
                terms.prices.rate(instance.price_key()).map_err(|hold| (hold, Some(hours)))?,
                terms.as_of,
            );
            rates
        }
        (None, false) => {
            terms.prices.rates(instance.price_key(), terms.as_of).map_err(|hold| (hold, Some(hours)))?
        }
    };
    let evaluated = instance.meter.as_ref().filter(|_| instance.held == Some(Reason::InsufficientBalance));
    let unseen_from = evaluated.map_or(start, |meter| start.max(meter.seen_at));
    let carry = instance.meter.as_ref().map_or(Carry(0), |meter| meter.carry);
    let unseen_hours = whole_hours(unseen_from, until);
    Ok(Some(DueHours { start, hours, unseen_hours, carry, rates }))
}

fn not_due(terms: &BillingTerms<'_>, posting: &mut Posting<'_>, instance: &Instance) {
    repair_anchor(terms, posting, instance);
    if instance.held.is_some() {
        let ended = if is_lost(instance) { &mut posting.deleted } else { &mut posting.releases };
        ended.push(instance.id.clone());
    }
}

/// Whether the instance was deleted with hours due that can never be charged, because no price of it was ever seen.
fn is_lost(instance: &Instance) -> bool {
    let unpriced = instance
        .meter
        .as_ref()
        .is_none_or(|meter| meter.rates.is_none() && whole_hours(meter.billed_through, meter.seen_at) > 0);
    instance.gone && unpriced
}

/// Moves the panel's anchor to where the instance is charged, if it is behind.
fn repair_anchor(terms: &BillingTerms<'_>, posting: &mut Posting<'_>, instance: &Instance) {
    if let Some(meter) = &instance.meter {
        move_anchor(terms, posting, instance, meter.billed_through);
    }
}

/// Moves the panel's anchor to where our charges end, and repairs what the panel's tables lack before that.
fn move_anchor(
    terms: &BillingTerms<'_>,
    posting: &mut Posting<'_>,
    instance: &Instance,
    billed_through: Micros,
) {
    let known = !instance.gone && terms.refused.is_none();
    let last_billed_at = instance.last_billed_at.at();
    let Some(anchor) = last_billed_at.or(instance.created_at.at()).filter(|_| known) else { return };
    // A clock that was set back leaves our watermark in the future; the panel's anchor is never moved there.
    if anchor >= billed_through || billed_through > terms.as_of || panel_in_progress(terms, instance, anchor)
    {
        return;
    }
    let row = AnchorRow { instance: instance.id.clone(), before: last_billed_at, after: billed_through };
    posting.anchors.push(row);
    let watermark = instance.meter.as_ref().map_or(anchor, |meter| meter.billed_through);
    if anchor < watermark {
        posting.repairs.push(RepairRow { instance: instance.id.clone(), since: anchor, until: watermark });
    }
}

/// Whether the panel's own biller has debited, and may still be about to write the cycle and the anchor itself.
fn panel_in_progress(terms: &BillingTerms<'_>, instance: &Instance, anchor: Micros) -> bool {
    let Some(meter) = &instance.meter else { return false };
    // It writes milliseconds.
    let unwritten = anchor.div_euclid(1_000) < meter.billed_through.div_euclid(1_000);
    let just_now = |debited_at| terms.as_of.saturating_sub(debited_at) < SECOND_TRANSACTION;
    unwritten && meter.panel_debited_at.is_some_and(just_now)
}

fn write_meter(
    terms: &BillingTerms<'_>,
    posting: &mut Posting<'_>,
    instance: &Instance,
    due: &DueHours,
    cursor: &ChargeCursor,
) {
    let mut rates = due.rates.clone();
    rates.forget_before(cursor.at);
    // A deleted instance was not seen now, and owes nothing for the time since.
    let seen_at =
        instance.meter.as_ref().filter(|_| instance.gone).map_or(terms.as_of, |meter| meter.seen_at);
    let row = MeterRow {
        instance: instance.id.clone(),
        organization: instance.organization.clone(),
        billed_through_before: instance.meter.as_ref().map(|meter| meter.billed_through),
        billed_through: cursor.at,
        carry: cursor.carry,
        rate: Some(rates.first),
        rate_changes: rates_json(&rates),
        seen_at,
    };
    if instance.meter.is_some() { posting.meters.push(row) } else { posting.new_meters.push(row) }
}

/// Records that an instance exists, though its hours have no price now.
fn touch_meter(terms: &BillingTerms<'_>, posting: &mut Posting<'_>, instance: &Instance) {
    if let Some(meter) = &instance.meter {
        posting.meters.push(MeterRow {
            instance: instance.id.clone(),
            organization: instance.organization.clone(),
            billed_through_before: Some(meter.billed_through),
            billed_through: meter.billed_through,
            carry: meter.carry,
            rate: meter.rates.as_ref().map(|rates| rates.first),
            rate_changes: meter.rates.as_ref().and_then(rates_json),
            seen_at: terms.as_of,
        });
    }
}

pub(super) fn rates_json(rates: &Rates) -> Option<String> {
    (!rates.changes.is_empty())
        .then(|| serde_json::to_string(&rates.changes).expect("pairs of integers are always JSON"))
}

fn hold_instance<'a>(
    posting: &mut Posting<'a>,
    instance: &'a Instance,
    hold: &Hold,
    hours: Option<i64>,
    amount: Option<Money>,
    currency: Option<Currency>,
) {
    posting.totals.held += 1;
    posting.holds.push(HoldRow {
        instance,
        reason: hold.reason.as_str(),
        detail: hold.detail.clone(),
        hours,
        amount,
        currency,
    });
}

#[cfg(test)]
mod tests;
