//! Why an instance that is due was not charged.

use std::{fmt, str::FromStr};

use serde::Serialize;

macro_rules! reasons {
    ($($(#[$doc:meta])+ $name:ident = $word:literal;)+) => {
        /// The reason of a hold, as stored in `billing_holds`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Reason {
            $($(#[$doc])+ $name,)+
        }

        impl Reason {
            /// The reasons in the order of their definition.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$name),+];

            /// The word for it in the database.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }
        }
    };
}

reasons! {
    /// The organization has no wallet.
    NoWallet = "no_wallet";
    /// The organization has several wallets, and billing cannot decide which one pays.
    DuplicateWallets = "duplicate_wallets";
    /// The wallet's balance is NULL or not a number.
    InvalidBalance = "invalid_balance";
    /// The wallet's currency is NULL or not three letters.
    InvalidCurrency = "invalid_currency";
    /// The instance names a plan that does not exist.
    UnknownPlan = "unknown_plan";
    /// The instance names several plans with different prices.
    AmbiguousPlan = "ambiguous_plan";
    /// A price that is needed is NULL.
    NoPrice = "no_price";
    /// A price is negative, not a number, or too large.
    InvalidPrice = "invalid_price";
    /// The last billing or the creation of the instance is not a plausible time, or neither is set.
    InvalidTime = "invalid_time";
    /// More hours are due than may be charged without approval.
    CatchUpLimit = "catch_up_limit";
    /// The wallet does not cover the next hour.
    InsufficientBalance = "insufficient_balance";
    /// A row that is needed cannot be read.
    Unreadable = "unreadable";
    /// The database refused the charge.
    Failed = "failed";
    /// The panel deleted the instance before its last hours were charged. Such a hold is closed from the beginning.
    InstanceDeleted = "instance_deleted";
    /// The instance changed its organization before the hours of the previous one were charged. Such a hold is closed at once.
    InstanceTransferred = "instance_transferred";
}

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text).ok_or(UnknownReason)
    }
}

/// The text is not the word of a [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown reason for a hold")]
pub struct UnknownReason;

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A reason with what an operator needs to correct it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The kind of the problem.
    pub reason: Reason,
    /// The explanation for the operator.
    pub detail: String,
}

impl Hold {
    /// Held for `reason`.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    /// Held because the balance of `wallet` is `balance`, which has this `problem`.
    pub(crate) fn invalid_balance(wallet: impl fmt::Display, balance: &str, problem: &str) -> Self {
        Self::new(Reason::InvalidBalance, format!("wallet {wallet}: balance {balance} {problem}"))
    }
}
