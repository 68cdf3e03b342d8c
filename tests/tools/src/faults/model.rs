//! The invariants after a campaign, from its own journal and the final tables: no line of the billing code is used.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::DateTime;
use uuid::Uuid;

use super::{
    fleet::{HOUR, Micros},
    journal::{Instance, Journal, PlanLog},
    report::Report,
    tables::{Charge, Cycle, Tables},
};

/// The longest time between the reading of a price and the transaction that charges it.
const OLD_PRICES: Duration = Duration::from_secs(20);
/// A monthly price in cents is this rate in 1/730 of a millionth an hour; 73,000 of these are a ten-thousandth.
const RATE_PER_CENT: i64 = 10_000;
const RATE_PER_TEN_THOUSANDTH: i128 = 73_000;

/// Adds to `report` every violation at `now`, the fleet's time.
pub(super) fn check(report: &mut Report, journal: &Journal, tables: &Tables, now: Micros) {
    Model { report, journal, tables, now }.check();
}

struct Model<'a> {
    report: &'a mut Report,
    journal: &'a Journal,
    tables: &'a Tables,
    now: Micros,
}

impl Model<'_> {
    fn check(&mut self) {
        let (journal, tables) = (self.journal, self.tables);
        let mut charges: BTreeMap<Uuid, Vec<&Charge>> = BTreeMap::new();
        for charge in &tables.charges {
            charges.entry(charge.instance).or_default().push(charge);
        }
        let mut cycles: BTreeMap<Uuid, Vec<&Cycle>> = BTreeMap::new();
        for cycle in &tables.cycles {
            cycles.entry(cycle.instance).or_default().push(cycle);
        }
        let finished = finished_runs(tables);
        let debited = hours_debited(tables);
        for (id, instance) in &journal.instances {
            let charges = charges.remove(id).unwrap_or_default();
            self.hours(*id, instance, &charges, &finished);
            self.prices(*id, instance, &charges);
            self.panel_rows(*id, instance, &charges, &cycles.remove(id).unwrap_or_default(), &debited);
        }
        for id in charges.keys().chain(cycles.keys()) {
            self.report.violate(format!("instance {id} is charged and was never made"));
        }
        self.wallets();
        self.runs();
        self.tokens();
        self.report.instances = journal.instances.len() as u64;
    }

    /// Every hour that ended is charged once or held.
    fn hours(&mut self, id: Uuid, instance: &Instance, charges: &[&Charge], finished: &[(Micros, Micros)]) {
        let mut at = instance.created;
        let mut settled = 0;
        for charge in charges {
            let end = charge.start + charge.hours * HOUR;
            if charge.start < at {
                let twice = ((end.min(at) - charge.start) / HOUR).max(1);
                self.report.double += twice.unsigned_abs();
                self.report
                    .find(format!("instance {id}: {twice} hours from {} on are charged again", charge.start));
            }
            if charge.start > at {
                let lost = ((charge.start - at) / HOUR).max(1);
                self.report.lost += lost.unsigned_abs();
                self.report
                    .find(format!("instance {id}: {lost} hours before {} are not charged", charge.start));
            }
            settled += (end - at.max(charge.start)) / HOUR;
            at = at.max(end);
        }
        let held = self.tables.holds.get(&id).copied().unwrap_or_default();
        let accounted = (at - instance.created) / HOUR + held;
        let (least, most) = match instance.deleted {
            None => {
                let due = (self.now - instance.created) / HOUR;
                (due, due)
            }
            // A deleted instance is invisible: its hours end when a run saw it last, and at the latest when it went.
            Some(deleted) => {
                let seen = finished
                    .iter()
                    .filter(|(finished, _)| *finished < deleted.begun)
                    .map(|(_, as_of)| *as_of)
                    .max();
                let least = (seen.unwrap_or(instance.created) - instance.created) / HOUR;
                (least, (deleted.by - instance.created) / HOUR)
            }
        };
        if accounted < least {
            let lost = least - accounted;
            self.report.lost += lost.unsigned_abs();
            self.report.find(format!("instance {id}: {lost} of {least} hours are neither charged nor held"));
        }
        if accounted > most {
            let more = accounted - most;
            self.report.double += more.unsigned_abs();
            self.report.find(format!("instance {id}: {more} hours are charged or held that never ended"));
        }
        self.report.hours_due += accounted.clamp(least, most.max(least)).unsigned_abs();
        self.report.hours_charged += settled.unsigned_abs();
        self.report.hours_held += held.unsigned_abs();
    }

    /// Every charge has the amount of its hours at a price that was in force, without loss by rounding.
    fn prices(&mut self, id: Uuid, instance: &Instance, charges: &[&Charge]) {
        let mut owed: i128 = 0;
        let mut paid: i128 = 0;
        let mut seen: Vec<(Micros, Micros)> = Vec::new();
        // The panel rounds each of its charges; what is carried passes over them.
        for charge in charges.iter().filter(|charge| !charge.by_panel) {
            owed += i128::from(charge.rate) * i128::from(charge.hours);
            paid += i128::from(charge.amount);
            if paid != owed / RATE_PER_TEN_THOUSANDTH {
                self.report.violate(format!("instance {id}: {paid} ten-thousandths are paid up to the charge from {}, {owed} u are owed", charge.start));
                break;
            }
            if charge.organization != instance.organization {
                self.report.violate(format!("instance {id}: organization {} pays", charge.organization));
            }
            let Some(batch) = self.tables.batches.get(&charge.batch) else { continue };
            // An hour has the price that was seen last before it ended, however late it is charged; the last charge that was
            // made before it ended is the last time for sure that anything was seen.
            let ended = charge.start + HOUR;
            let since = seen.iter().rev().find(|(as_of, _)| *as_of < ended).map_or(0, |(_, begun)| *begun);
            let since = since - micros(OLD_PRICES);
            if !was_in_force(&self.journal.plans[instance.plan], charge.rate, since, batch.begun) {
                self.report.violate(format!(
                    "instance {id}: the charge from {} has a rate of {} u that the plan never had then",
                    charge.start, charge.rate
                ));
            }
            if charge.start + charge.hours * HOUR > batch.as_of {
                self.report
                    .violate(format!("instance {id}: the charge from {} is for hours to come", charge.start));
            }
            seen.push((batch.as_of, batch.begun));
        }
    }

    /// The panel's ledger and cycles match our charges.
    fn panel_rows(
        &mut self,
        id: Uuid,
        instance: &Instance,
        charges: &[&Charge],
        cycles: &[&Cycle],
        debited: &BTreeMap<&str, i64>,
    ) {
        let hours: i64 = charges.iter().filter(|charge| charge.amount > 0).map(|charge| charge.hours).sum();
        let ledger = debited.get(instance.label.as_str()).copied().unwrap_or_default();
        if ledger != hours {
            self.report.violate(format!(
                "instance {id}: {hours} hours are charged, and the ledger has debits for {ledger}"
            ));
        }
        if instance.deleted.is_some() {
            return;
        }
        let same = charges.len() == cycles.len()
            && charges.iter().zip(cycles).all(|(charge, cycle)| {
                // The panel writes milliseconds.
                let precision = if charge.by_panel { 1_000 } else { 1 };
                (charge.start - cycle.start).abs() < precision
                    && (charge.start + charge.hours * HOUR - cycle.end).abs() < precision
                    && charge.amount == cycle.amount
            });
        if !same {
            let (charges, cycles) = (charges.len(), cycles.len());
            self.report.violate(format!(
                "instance {id}: there are {charges} charges and {cycles} billed cycles, or they differ"
            ));
        }
    }

    /// A wallet holds what was paid in, less what was charged; the panel's ledger has the same.
    fn wallets(&mut self) {
        let mut charged: BTreeMap<Uuid, i64> = BTreeMap::new();
        for charge in &self.tables.charges {
            *charged.entry(charge.organization).or_default() += charge.amount;
        }
        let mut debited: BTreeMap<Uuid, i64> = BTreeMap::new();
        for entry in self.tables.ledger.iter().filter(|entry| entry.amount < 0) {
            *debited.entry(entry.organization).or_default() -= entry.amount;
        }
        for (organization, paid_in) in &self.journal.wallets {
            let charged = charged.get(organization).copied().unwrap_or_default();
            let debited = debited.get(organization).copied().unwrap_or_default();
            let expected = paid_in - charged;
            let found = self.tables.wallets.get(organization).copied();
            if found != Some(expected) || debited != charged {
                self.report.wallets_off += 1;
                self.report.find(format!("the wallet of {organization} holds {found:?} and should hold {expected}; {charged} are charged, and {debited} debited"));
            }
        }
    }

    /// A run's row has the sums of its batches.
    fn runs(&mut self) {
        let mut batches: BTreeMap<Uuid, i64> = BTreeMap::new();
        for batch in self.tables.batches.values() {
            *batches.entry(batch.run).or_default() += batch.instances;
        }
        for run in self.tables.runs.iter().filter(|run| run.status == "done") {
            let charged = batches.get(&run.id).copied().unwrap_or_default();
            if run.items != charged {
                self.report.violate(format!(
                    "run {} reports {} charged instances, its batches {charged}",
                    run.id, run.items
                ));
            }
        }
    }

    /// Only the newest holder commits: fencing tokens never decrease, and runs of one job never overlap.
    fn tokens(&mut self) {
        let mut newest = 0;
        for (id, batch) in &self.tables.batches {
            if batch.fencing_token < newest {
                self.report.violate(format!(
                    "batch {id} was committed under the number {} after one under {newest}",
                    batch.fencing_token
                ));
            }
            newest = newest.max(batch.fencing_token);
        }
        let mut ended = BTreeMap::new();
        for run in &self.tables.runs {
            ended
                .entry(run.fencing_token)
                .and_modify(|end: &mut Micros| *end = run.finished.max(*end))
                .or_insert(run.finished);
        }
        let overlapping: BTreeSet<Uuid> = self
            .tables
            .runs
            .iter()
            .filter(|run| ended.range(..run.fencing_token).any(|(_, end)| *end > run.started))
            .map(|run| run.id)
            .collect();
        for run in overlapping {
            self.report.violate(format!("run {run} began before an older holder's was recorded"));
        }
    }
}

/// When each run that was done had finished, by the real time, and until when it had billed, by the fleet's.
fn finished_runs(tables: &Tables) -> Vec<(Micros, Micros)> {
    let done = tables.runs.iter().filter(|run| run.status == "done");
    done.filter_map(|run| {
        let as_of = DateTime::parse_from_rfc3339(run.details.get("as_of")?.as_str()?).ok()?;
        Some((run.finished, as_of.timestamp_micros()))
    })
    .collect()
}

/// The hours of each label's debits, from their descriptions: `VPS Hourly Billing - {label} ({n}h)`.
fn hours_debited(tables: &Tables) -> BTreeMap<&str, i64> {
    let mut debited = BTreeMap::new();
    for entry in &tables.ledger {
        let parts =
            entry.description.strip_prefix("VPS Hourly Billing - ").and_then(|rest| rest.rsplit_once(" ("));
        if let Some((label, hours)) = parts {
            let hours: i64 = hours.trim_end_matches("h)").parse().unwrap_or_default();
            *debited.entry(label).or_default() += hours;
        }
    }
    debited
}

/// Whether the plan had a price of this rate at any time between the two.
fn was_in_force(plan: &PlanLog, rate: i64, since: Micros, until: Micros) -> bool {
    plan.prices.iter().enumerate().any(|(number, price)| {
        let ended = plan.prices.get(number + 1).map_or(Micros::MAX, |next| next.since.1);
        price.cents * RATE_PER_CENT == rate && price.since.0 <= until && ended >= since
    })
}

fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}
