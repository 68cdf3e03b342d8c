//! The rows that the database rejected in a run, and when they make the run a failure.
//!
//! A rejected charge affects its customer alone, and the run continues. If nearly every charge is rejected, the cause is not a
//! customer but a trigger, a constraint or a policy that changed. Then every further charge would be rejected as well.

use std::collections::HashSet;

use super::{
    findings::{Findings, LISTED},
    id::Id,
};

/// A run stops after as many customers in a row were refused with one complaint and nothing was charged in between.
const CUSTOMERS: usize = 10;

/// What a run has charged, and what was refused.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Instances that were charged.
    charged: u64,
    /// Instances of which a row was rejected, with the error of the database.
    found: Findings,
    /// Of these, the ones that should have been charged.
    uncharged: u64,
    /// What was refused since something was charged last: its customers, and the complaint that they have in common.
    customers: HashSet<Id>,
    /// The code of the complaint, and its text.
    complaint: Option<(String, String)>,
}

/// Why a run is a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failing {
    pub(super) instances: u64,
    pub(super) complaint: String,
}

impl Refusals {
    /// A batch that charged so many instances is committed.
    pub(super) fn charged(&mut self, instances: u64) {
        if instances > 0 {
            self.charged += instances;
            self.customers.clear();
            self.complaint = None;
        }
    }

    /// Something else than a charge of `instance` was refused, such as the repair of what the panel believes of it.
    pub(super) fn refused(&mut self, instance: &Id, text: &str) {
        self.found.add(format!("instance {instance}: {text}"), LISTED);
    }

    /// The charge of `instance` was rejected. `code` is the same for errors whose texts differ by a value.
    ///
    /// # Errors
    /// It is one too many: the run stops.
    pub(super) fn refused_charge(
        &mut self,
        customer: &Id,
        instance: &Id,
        code: &str,
        text: &str,
    ) -> Result<(), Failing> {
        self.refused(instance, text);
        self.uncharged += 1;
        if self.complaint.as_ref().is_none_or(|(known, _)| known != code) {
            self.customers.clear();
        }
        self.customers.insert(customer.clone());
        self.complaint = Some((code.to_owned(), text.to_owned()));
        if self.customers.len() < CUSTOMERS { Ok(()) } else { Err(self.failing()) }
    }

    /// The end of a run that was not stopped.
    ///
    /// # Errors
    /// Something was due that could be charged, and all of it was refused.
    pub(super) fn end(&mut self) -> Result<Findings, Failing> {
        if self.charged == 0 && self.uncharged > 0 {
            return Err(self.failing());
        }
        Ok(self.take())
    }

    /// The rejections of a run that was stopped, which imply nothing about the rest of the fleet.
    pub(super) fn take(&mut self) -> Findings {
        std::mem::take(&mut self.found)
    }

    fn failing(&self) -> Failing {
        let complaint = self.complaint.as_ref().map(|(_, text)| text.clone()).unwrap_or_default();
        Failing { instances: self.uncharged, complaint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happened to a customer's instance.
    #[derive(Clone, Copy)]
    enum Event {
        Charged,
        /// With the same complaint as all the others.
        Refused,
        /// With a different complaint each time.
        RefusedOtherwise,
    }

    /// Whether a run stops, and whether it is a failure if it does not.
    fn outcome(customers: impl IntoIterator<Item = (usize, Event)>) -> &'static str {
        let mut refusals = Refusals::default();
        for (n, (customer, event)) in customers.into_iter().enumerate() {
            let customer = Id::from(customer.to_string());
            let code = match event {
                Event::Charged => {
                    refusals.charged(1);
                    continue;
                }
                Event::Refused => "23514".to_owned(),
                Event::RefusedOtherwise => n.to_string(),
            };
            if refusals.refused_charge(&customer, &Id::from(n.to_string()), &code, "no").is_err() {
                return "stopped";
            }
        }
        if refusals.end().is_ok() { "success" } else { "failure" }
    }

    #[test]
    fn repeated_refusals_stop_and_fail_run() {
        use Event::{Charged, Refused, RefusedOtherwise};
        let each = |event, count| (0..count).map(move |customer| (customer, event));
        assert_eq!(outcome([]), "success", "nothing was due");
        assert_eq!(outcome(each(Charged, 100)), "success");
        assert_eq!(outcome(each(Refused, 1)), "failure", "all there was");
        assert_eq!(outcome(each(Refused, 9)), "failure");
        assert_eq!(outcome(each(Refused, 10)), "stopped");
        assert_eq!(outcome(each(RefusedOtherwise, 100)), "failure", "each for a different reason");
        let one_customer = || (0..100).map(|_| (7, Refused));
        assert_eq!(outcome(one_customer()), "failure");
        assert_eq!(outcome(one_customer().chain([(1, Charged)])), "success", "one bad customer");
        let mixed = || (0..100).map(|n| (n, if n % 10 == 0 { Charged } else { Refused }));
        assert_eq!(outcome(mixed()), "success", "nine of ten are refused, and others are charged");
        let from_then_on = each(Charged, 50).chain(each(Refused, 50));
        assert_eq!(outcome(from_then_on), "stopped", "the database changed during the run");
    }
}
