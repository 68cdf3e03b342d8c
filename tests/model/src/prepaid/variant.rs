//! The policy as it is, and with guards taken away.

use super::world::{Action, Broken};

/// Which guards are in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each guard is there or not, whatever the others are")]
pub struct Guards {
    /// A suspension waits for the grace period.
    pub grace: bool,
    /// The grace period begins again after an outage of billing.
    pub outage: bool,
    /// A suspension needs delivered notices.
    pub counted: bool,
    /// The oldest of them has a minimal age.
    pub aged: bool,
    /// A suspension waits for the hour of the final notice.
    pub announced: bool,
    /// The notices of the episode are known.
    pub keyed: bool,
    /// A new episode needs more hours than the highest level.
    pub hysteresis: bool,
    /// A payment resumes.
    pub resumes: bool,
    /// A missing fact is not replaced by a guess.
    pub unknown: bool,
    /// A suspension waits for the window.
    pub window: bool,
    /// An exempt organization is not suspended.
    pub exempt: bool,
    /// No suspension is ordered before the time that the policy of the organization names.
    pub not_before: bool,
}

const ALL: Guards = Guards {
    grace: true,
    outage: true,
    counted: true,
    aged: true,
    announced: true,
    keyed: true,
    hysteresis: true,
    resumes: true,
    unknown: true,
    window: true,
    exempt: true,
    not_before: true,
};

/// A named policy.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// How the README calls it.
    pub name: &'static str,
    /// The promise that it breaks; none: it holds.
    pub breaks: Option<Broken>,
    /// The guards that it has.
    pub guards: Guards,
    /// What can happen, besides the delivery of notices.
    pub actions: &'static [Action],
}

const fn without(name: &'static str, broken: Broken, guards: Guards) -> Variant {
    Variant { name, breaks: Some(broken), guards, actions: Action::USUAL }
}

const fn permits(name: &'static str, breaks: Option<Broken>, guards: Guards) -> Variant {
    Variant { name, breaks, guards, actions: Action::EXCEPTIONS }
}

/// The policy, and each guard removed once.
pub const VARIANTS: [Variant; 14] = [
    Variant { name: "prepaid", breaks: None, guards: ALL, actions: Action::USUAL },
    permits("exceptions", None, ALL),
    without("no-grace", Broken::NoGrace, Guards { grace: false, ..ALL }),
    without("no-outage", Broken::NoGrace, Guards { outage: false, ..ALL }),
    without("no-count", Broken::Unwarned, Guards { counted: false, ..ALL }),
    without("no-age", Broken::Unwarned, Guards { aged: false, ..ALL }),
    without("no-announcement", Broken::Unannounced, Guards { announced: false, ..ALL }),
    without("no-notice-key", Broken::Twice, Guards { keyed: false, ..ALL }),
    without("no-hysteresis", Broken::Twice, Guards { hysteresis: false, ..ALL }),
    without("no-resume", Broken::NotResumed, Guards { resumes: false, ..ALL }),
    without("no-unknown", Broken::Guessed, Guards { unknown: false, ..ALL }),
    permits("no-window", Some(Broken::Forbidden), Guards { window: false, ..ALL }),
    permits("no-exemption", Some(Broken::Forbidden), Guards { exempt: false, ..ALL }),
    permits("no-not-before", Some(Broken::Forbidden), Guards { not_before: false, ..ALL }),
];
