//! Why an instance that is due was not charged.

use std::{fmt, str::FromStr};

use serde::Serialize;

/// The reason of a hold, as stored in `billing_holds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The organization has no wallet.
    NoWallet,
    /// The organization has several wallets, and billing cannot decide which one pays.
    DuplicateWallets,
    /// The wallet's balance is NULL or not a number.
    InvalidBalance,
    /// The wallet's currency is NULL or not three letters.
    InvalidCurrency,
    /// The instance names a plan that does not exist.
    UnknownPlan,
    /// The instance names several plans with different prices.
    AmbiguousPlan,
    /// A price that is needed is NULL.
    NoPrice,
    /// A price is negative, not a number, or too large.
    InvalidPrice,
    /// The last billing or the creation of the instance is not a plausible time, or neither is set.
    InvalidTime,
    /// More hours are due than may be charged without approval.
    CatchUpLimit,
    /// The wallet does not cover the next hour.
    InsufficientBalance,
    /// A row that is needed cannot be read.
    Unreadable,
    /// The database refused the charge.
    Failed,
    /// The panel deleted the instance before its last hours were charged. Such a hold is closed from the beginning.
    InstanceDeleted,
    /// The instance changed its organization before the hours of the previous one were charged. Such a hold is closed at once.
    InstanceTransferred,
}

impl Reason {
    /// Each of them.
    pub const ALL: [Self; 15] = [
        Self::NoWallet,
        Self::DuplicateWallets,
        Self::InvalidBalance,
        Self::InvalidCurrency,
        Self::UnknownPlan,
        Self::AmbiguousPlan,
        Self::NoPrice,
        Self::InvalidPrice,
        Self::InvalidTime,
        Self::CatchUpLimit,
        Self::InsufficientBalance,
        Self::Unreadable,
        Self::Failed,
        Self::InstanceDeleted,
        Self::InstanceTransferred,
    ];

    /// The word kept in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoWallet => "no_wallet",
            Self::DuplicateWallets => "duplicate_wallets",
            Self::InvalidBalance => "invalid_balance",
            Self::InvalidCurrency => "invalid_currency",
            Self::UnknownPlan => "unknown_plan",
            Self::AmbiguousPlan => "ambiguous_plan",
            Self::NoPrice => "no_price",
            Self::InvalidPrice => "invalid_price",
            Self::InvalidTime => "invalid_time",
            Self::CatchUpLimit => "catch_up_limit",
            Self::InsufficientBalance => "insufficient_balance",
            Self::Unreadable => "unreadable",
            Self::Failed => "failed",
            Self::InstanceDeleted => "instance_deleted",
            Self::InstanceTransferred => "instance_transferred",
        }
    }
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
