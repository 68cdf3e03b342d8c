//! The rows that a batch reads and the rows that it writes.

use uuid::Uuid;

use super::{
    id::Id,
    panel_time::PanelTime,
    totals::{CurrencyTotals, Totals},
};
use crate::{
    currency::{Currency, InvalidCurrency},
    hold::{Hold, Reason},
    money::{Carry, HourlyRate, Money},
    period::{Micros, Rates},
    price::PriceKey,
};

/// A wallet as it was read under lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wallet {
    pub(super) id: Id,
    pub(super) organization: Id,
    /// The money in it, or why it cannot be charged.
    pub(super) balance: Result<Money, Hold>,
    /// The currency of the balance.
    pub(super) currency: Result<Currency, InvalidCurrency>,
    /// Whether the audit knows what the wallet held when it was first charged.
    pub(super) opened: bool,
}

/// An instance that may be due, as it was read under its wallet's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) id: Id,
    pub(super) organization: Id,
    /// The name that the customer gave it.
    pub(super) label: String,
    /// The id or the name of its plan.
    pub(super) plan: String,
    /// `daily`, `weekly`, `none`; `None` where the panel has no backups.
    pub(super) backup_frequency: Option<String>,
    /// The provider; `None` where the panel does not name one.
    pub(super) provider: Option<String>,
    /// The panel's `last_billed_at`.
    pub(super) last_billed_at: PanelTime,
    /// The panel's `created_at`.
    pub(super) created_at: PanelTime,
    /// Whether the panel still has it. An instance that is gone is charged up to when it was last seen.
    pub(super) gone: bool,
    /// What is carried from charge to charge.
    pub(super) meter: Option<Meter>,
    /// The reason of the open hold, if there is one.
    pub(super) held: Option<Reason>,
    /// Whether the open hold belongs to another organization than the instance does now.
    pub(super) transfer: Option<Transfer>,
    /// Why its row, or its meter's, cannot be read. Then nothing but its id and what is above of it is known, and it is held.
    pub(super) unreadable: Option<String>,
}

impl Instance {
    pub(super) fn price_key(&self) -> PriceKey<'_> {
        PriceKey {
            plan_id: &self.plan,
            provider_id: self.provider.as_deref(),
            backup_frequency: self.backup_frequency.as_deref(),
        }
    }
}

impl Instance {
    /// An instance of which nothing else is known.
    pub(super) fn unread(id: Id, organization: Id) -> Self {
        Self {
            id,
            organization,
            label: String::new(),
            plan: String::new(),
            backup_frequency: None,
            provider: None,
            last_billed_at: PanelTime::Null,
            created_at: PanelTime::Null,
            gone: false,
            meter: None,
            held: None,
            transfer: None,
            unreadable: None,
        }
    }
}

/// One side of an instance that changed its organization while hours of it were due. The batch of the previous organization charges
/// or closes those and moves the meter to where they end; after that the new one pays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// The previous organization's side: `organization` of the instance is the previous one.
    From {
        /// Who has the instance now.
        to: Id,
        /// When a run last saw the previous organization have it.
        seen_at: Micros,
    },
    /// The new organization's side: nothing is charged before the other side is done.
    Pending,
}

/// What is carried from charge to charge of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meter {
    /// Every hour up to here is charged.
    pub(super) billed_through: Micros,
    /// The owed amount that is smaller than the unit of the wallet.
    pub(super) carry: Carry,
    /// The rates from there on; `None` if only the panel's own biller ever charged the instance, because it records no rate.
    pub(super) rates: Option<Rates>,
    /// When the instance was last seen with hours due.
    pub(super) seen_at: Micros,
    /// When the panel's own biller last moved the watermark.
    pub(super) panel_debited_at: Option<Micros>,
}

/// Everything that a batch writes. Each list becomes one statement.
#[derive(Debug, Default)]
pub(super) struct Posting<'a> {
    /// New rows of the ledger of hours, each with its rows in the panel's tables.
    pub(super) charges: Vec<ChargeRow<'a>>,
    /// Instances whose meter begins.
    pub(super) new_meters: Vec<MeterRow>,
    /// Instances whose meter moves.
    pub(super) meters: Vec<MeterRow>,
    /// The panel's own mark of what is billed.
    pub(super) anchors: Vec<AnchorRow>,
    /// Instances whose anchor was behind our watermark: their missing cycle rows are written.
    pub(super) repairs: Vec<RepairRow>,
    /// Due and not charged.
    pub(super) holds: Vec<HoldRow<'a>>,
    /// Instances whose hold ends.
    pub(super) releases: Vec<Id>,
    /// Instances whose hold ends without a charge: the panel deleted them, and the price of their hours was never known.
    pub(super) deleted: Vec<Id>,
    /// Instances whose hold is in `holds` and ends at once: the organization that owed its hours no longer has them.
    pub(super) uncollected: Vec<Id>,
    /// Instances that another organization pays from now on.
    pub(super) transferred: Vec<(Id, Id)>,
    /// The wallets whose balance changes.
    pub(super) wallets: Vec<WalletRow>,
    /// Wallets that are charged for the first time.
    pub(super) openings: Vec<Id>,
    /// Instances with more hours than the catch-up limit, whether approved or held for it.
    pub(super) beyond_limit: Vec<BeyondLimitRow<'a>>,
    /// The sums of the above.
    pub(super) totals: Totals,
}

/// An instance with more hours than the catch-up limit.
#[derive(Debug)]
pub(super) struct BeyondLimitRow<'a> {
    pub(super) instance: &'a Instance,
    /// The beginning of its due hours.
    pub(super) start: Micros,
    /// The due hours.
    pub(super) hours: i64,
    /// The price of these hours, if it is known.
    pub(super) amount: Option<Money>,
    /// Whether an approval covers them.
    pub(super) approved: bool,
}

/// One charge with its rows in the panel's tables.
#[derive(Debug)]
pub(super) struct ChargeRow<'a> {
    pub(super) instance: &'a Instance,
    /// The currency of the wallet that pays.
    pub(super) currency: Currency,
    /// Where the charged hours begin.
    pub(super) start: Micros,
    /// How many there are.
    pub(super) hours: i64,
    /// How many were due in all.
    pub(super) elapsed_hours: i64,
    /// The price of one hour.
    pub(super) rate: HourlyRate,
    /// What they cost together, after what was carried.
    pub(super) amount: Money,
    /// The remainder that the next charge of the instance begins with.
    pub(super) carry: Carry,
    /// What was taken from the wallet; none if that is nothing.
    pub(super) debit: Option<Debit>,
    /// The id of the cycle row, which is that of the debit if there is one; none if the panel no longer has the instance.
    pub(super) cycle: Option<Uuid>,
}

/// The wallet's side of a charge.
#[derive(Debug)]
pub(super) struct Debit {
    /// The id of the wallet's ledger row.
    pub(super) id: Uuid,
    /// What the wallet held.
    pub(super) balance_before: Money,
    /// What it holds then.
    pub(super) balance_after: Money,
}

/// A meter's new values.
#[derive(Debug)]
pub(super) struct MeterRow {
    pub(super) instance: Id,
    pub(super) organization: Id,
    /// The watermark that was read, which must be unchanged.
    pub(super) billed_through_before: Option<Micros>,
    /// The time up to which the instance is charged now.
    pub(super) billed_through: Micros,
    /// The remainder that the next charge of the instance begins with.
    pub(super) carry: Carry,
    /// The rate of the next hour, if it is known.
    pub(super) rate: Option<HourlyRate>,
    /// The later rates as JSON; unset without them.
    pub(super) rate_changes: Option<String>,
    /// When the instance was last seen with hours due.
    pub(super) seen_at: Micros,
}

/// An instance's new `last_billed_at`.
#[derive(Debug)]
pub(super) struct AnchorRow {
    pub(super) instance: Id,
    /// The value that was read, which must be unchanged.
    pub(super) before: Option<Micros>,
    /// The time up to which the instance is charged, as the panel reads it.
    pub(super) after: Micros,
}

/// Charges of ours that the panel's cycles may lack: those that begin in `[since, until)`.
#[derive(Debug)]
pub(super) struct RepairRow {
    pub(super) instance: Id,
    /// Where the panel's anchor is.
    pub(super) since: Micros,
    /// Where our watermark is.
    pub(super) until: Micros,
}

/// An open hold.
#[derive(Debug)]
pub(super) struct HoldRow<'a> {
    /// The held instance.
    pub(super) instance: &'a Instance,
    /// The word of a [`Reason`].
    pub(super) reason: &'static str,
    /// The explanation for the operator.
    pub(super) detail: String,
    /// Hours that are due and not charged, if that is known.
    pub(super) hours: Option<i64>,
    /// Their price, if it is known.
    pub(super) amount: Option<Money>,
    /// The currency of the wallet, if there is one wallet with one.
    pub(super) currency: Option<Currency>,
}

/// A wallet's new balance.
#[derive(Debug)]
pub(super) struct WalletRow {
    pub(super) wallet: Id,
    /// The balance that was read.
    pub(super) before: Money,
    /// The new balance.
    pub(super) after: Money,
}

impl Posting<'_> {
    /// A posting with capacity for one charge of each instance, so that no charge allocates.
    pub(super) fn for_batch(wallets: usize, instances: usize) -> Self {
        Self {
            charges: Vec::with_capacity(instances),
            meters: Vec::with_capacity(instances),
            anchors: Vec::with_capacity(instances),
            wallets: Vec::with_capacity(wallets),
            ..Self::default()
        }
    }
}

impl<'a> Posting<'a> {
    pub(super) fn add_charge(&mut self, charge: ChargeRow<'a>) {
        let ChargeRow { currency, hours, amount, .. } = charge;
        self.totals.charges += 1;
        self.totals.hours += hours.unsigned_abs();
        self.totals.currencies.add(currency, CurrencyTotals { charges: 1, hours, amount });
        self.charges.push(charge);
    }
}
