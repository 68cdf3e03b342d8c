//! Instances that changed their organization while hours of them were due.

use super::{
    BillingTerms, Carry, ChargeCursor, DueHours, HOUR, Hold, HoldRow, Id, Instance, MeterRow, Micros,
    Posting, Rates, Reason, WalletBalance, charge_due, cost_of, hold_instance, move_anchor, panel_time,
    rates_json, whole_hours,
};

/// Settles with the previous organization of an instance: what its wallet covers of the hours up to when it was last seen is
/// charged, the others are closed. The meter continues where those hours end, for `to`.
pub(super) fn settle_transfer<'a>(
    terms: &BillingTerms<'_>,
    posting: &mut Posting<'a>,
    wallet_balance: &mut WalletBalance<'a>,
    instance: &'a Instance,
    (to, seen_at): (&Id, Micros),
) {
    let currency = wallet_balance.currency();
    let meter = instance.meter.as_ref();
    let watermark = meter.map(|meter| meter.billed_through);
    let start = panel_time::start(&instance.last_billed_at, &instance.created_at, watermark, terms.as_of);
    let refused = terms.refused.map(|detail| Hold::new(Reason::Failed, detail));
    let start = match (start, refused) {
        (Ok(start), None) => start,
        (Err(hold), _) | (Ok(_), Some(hold)) => {
            hold_instance(posting, instance, &hold, None, None, currency);
            return;
        }
    };
    let hours = whole_hours(start, seen_at);
    let carry = meter.map_or(Carry(0), |meter| meter.carry);
    let mut cursor = ChargeCursor { at: start, carry };
    let rates = meter.and_then(|meter| meter.rates.clone()).or_else(|| seen_rates(terms, instance));
    let due = rates.filter(|_| hours > 0).map(|rates| {
        let evaluated = instance.held == Some(Reason::InsufficientBalance);
        let unseen_hours = if evaluated { 0 } else { hours };
        DueHours { start, hours, unseen_hours, carry, rates }
    });
    if let Some(due) = &due {
        // Why hours are left does not matter: they are closed.
        let _ = charge_due(terms, posting, wallet_balance, instance, due, &mut cursor);
    }
    let left = hours - (cursor.at - start) / HOUR;
    posting.totals.charged += u64::from(left < hours);
    let until = start + hours * HOUR;
    let mut rates = meter.and_then(|meter| meter.rates.clone());
    if let Some(rates) = &mut rates {
        rates.forget_before(until);
    }
    if hours > 0 || meter.is_some() {
        let row = MeterRow {
            instance: instance.id.clone(),
            organization: to.clone(),
            billed_through_before: watermark,
            billed_through: until,
            carry: cursor.carry,
            rate: rates.as_ref().map(|rates| rates.first),
            rate_changes: rates.as_ref().and_then(rates_json),
            seen_at,
        };
        let rows = if meter.is_some() { &mut posting.meters } else { &mut posting.new_meters };
        rows.push(row);
        move_anchor(terms, posting, instance, until);
    }
    if left > 0 {
        let detail =
            format!("organization {to} has the instance now; these hours were of {}", instance.organization);
        posting.holds.push(HoldRow {
            instance,
            reason: Reason::InstanceTransferred.as_str(),
            detail,
            hours: Some(left),
            amount: due.and_then(|due| cost_of(&due, &cursor, left, terms.unit)),
            currency,
        });
        posting.uncollected.push(instance.id.clone());
    } else {
        posting.releases.push(instance.id.clone());
    }
    posting.transferred.push((to.clone(), instance.id.clone()));
}

/// The prices that earlier runs saw of the plan, for an instance without a price in its meter. If it was held because its plan was
/// unknown or ambiguous, the plan that it names now may not be the plan of those hours.
fn seen_rates(terms: &BillingTerms<'_>, instance: &Instance) -> Option<Rates> {
    let had_no_plan = matches!(instance.held, Some(Reason::UnknownPlan | Reason::AmbiguousPlan));
    terms.prices.seen_rates(instance.price_key()).filter(|_| !had_no_plan)
}
