//! What an operator does about a hold, by its reason: one text for every command.

use billing_jobs::hold::Reason;

/// Returns what to do about a hold for `reason`, as the database has it.
pub(crate) fn advice(reason: &str) -> &'static str {
    let known = Reason::ALL.into_iter().find(|known| known.as_str() == reason);
    known.map_or("this version does not know the reason: `billing-daemon version` shows which it is", of)
}

fn of(reason: Reason) -> &'static str {
    match reason {
        Reason::NoWallet => "create a wallet for the organization in the panel",
        Reason::DuplicateWallets => "merge the wallets of the organization in the panel until one is left",
        Reason::InvalidBalance => "correct `wallets.balance`: it is not an amount of money",
        Reason::InvalidCurrency => "correct `wallets.currency`: three letters A to Z, such as USD",
        Reason::UnknownPlan => "add the plan, or correct `vps_instances.plan_id`",
        Reason::AmbiguousPlan => {
            "set `plan_id` or `provider_id` of the instance to that of one plan: several plans have this name"
        }
        Reason::NoPrice => "set the plan's price, to 0 if it is free",
        Reason::InvalidPrice => {
            "correct the plan's price: it is negative, not a number, too large, or has too many decimals"
        }
        Reason::InvalidTime => "correct `last_billed_at` or `created_at` of the instance",
        Reason::CatchUpLimit => {
            "check with `bill --dry-run --approve-catch-up INSTANCE`, then run it without `--dry-run`"
        }
        Reason::InsufficientBalance => "nothing; the hours are charged after the customer's next payment",
        Reason::Unreadable => "correct the value that cannot be read; `holds list` shows its column",
        Reason::Failed => "correct the row that the database refuses; `holds list` shows its message",
        Reason::InstanceDeleted => "nothing; the panel deleted the instance, and its hours cannot be charged",
        Reason::InstanceTransferred => "nothing; the previous organization could not pay these hours",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_advice() {
        let mut texts: Vec<_> = Reason::ALL.iter().map(|reason| advice(reason.as_str())).collect();
        texts.push(advice("unheard_of"));
        let count = texts.len();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), count);
        assert!(texts.iter().all(|text| !text.ends_with('.') && text.len() < 100), "{texts:?}");
    }
}
