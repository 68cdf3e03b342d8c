//! The protocol as it is, and with guards taken away: who takes part, what is in place, what must come of it.

use crate::properties::{ENDED, FENCING, KNOWN, ONCE, WALLET, WHOLE};

/// What a daemon's transaction does about its number before it does anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Joins both rows on it and holds the fencing row `FOR SHARE` to its end.
    Locked,
    /// Joins both rows on it, without a lock.
    Unlocked,
    /// Looks at the lease row alone: there is no fencing row to raise.
    LeaseRowOnly,
    /// Compares no token.
    Nothing,
}

/// Whether a panel bills too, and what keeps it from charging an hour twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanelPresence {
    /// There is no panel.
    Absent,
    /// The panel, unless a heartbeat is fresh; nothing in the database stops it.
    PanelByHeartbeat,
    /// The panel, which never looks at a heartbeat; a trigger on its ledger row decides.
    PanelByTrigger(Trigger),
}

/// What the trigger does about a debit of the panel, in addition to rejecting it while our billing works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each guard is there or not, whatever the others are")]
pub struct Trigger {
    /// When it raises the fencing row with no holder.
    pub raises_token: Raises,
    /// Moves the start of the debited hours to the meter's watermark, and moves the meter.
    pub moves_meter: bool,
    /// Writes the ledger's row, which the unique key may refuse.
    pub writes_ledger: bool,
    /// Refuses a debit of hours that have not ended.
    pub refuses_future: bool,
    /// Refuses a debit that overwrote another balance than the one it had read.
    pub compares_balance: bool,
}

/// When the trigger raises the fencing row. Where it does not, it holds the row `FOR SHARE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raises {
    /// For each debit.
    Always,
    /// If a claim may be in use: unless it has raised the row above every claim already.
    AboveClaims,
    /// If the newest claim is in force.
    AboveHolder,
    /// Never, and it does not even hold the row.
    Never,
}

/// Which of the guards are in place, and who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each guard is there or not, whatever the others are")]
pub struct Guards {
    /// The panel guard.
    pub check: Check,
    /// The lease row is claimed first and the fencing row raised afterwards; otherwise the other way round.
    pub lease_first: bool,
    /// What is due is read under the wallet's lock; otherwise once, before any transaction.
    pub reads_under_lock: bool,
    /// Watermark and anchor move only from the values that were read.
    pub compares_watermark: bool,
    /// The ledger's unique key.
    pub key: bool,
    /// How the panel bills, if there is one.
    pub panel: PanelPresence,
    /// The database may be replaced by one that lost the newest commits.
    pub fail_over: bool,
}

/// How large the world is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// At most [`MAX_DAEMONS`](crate::state::MAX_DAEMONS).
    pub daemons: usize,
    /// At most [`MAX_INSTANCES`](crate::state::MAX_INSTANCES).
    pub instances: usize,
    /// At most [`MAX_HOURS`](crate::state::MAX_HOURS).
    pub hours: u8,
}

/// A named protocol.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// How the command line calls it.
    pub name: &'static str,
    /// What it is, or what is wrong with it.
    pub what: &'static str,
    /// The property that it breaks; none: it holds.
    pub breaks: Option<&'static str>,
    /// The safeguards that it has.
    pub guards: Guards,
    /// A world that is large enough to show it.
    pub size: Size,
}

/// Daemons alone, with every guard.
pub const DAEMONS: Guards = Guards {
    check: Check::Locked,
    lease_first: true,
    reads_under_lock: true,
    compares_watermark: true,
    key: true,
    panel: PanelPresence::Absent,
    fail_over: false,
};

/// Daemons and the panel, with every guard.
pub const PANEL: Guards = with_panel(TRIGGER);

/// The trigger as it is meant.
pub const TRIGGER: Trigger = Trigger {
    raises_token: Raises::AboveClaims,
    moves_meter: true,
    writes_ledger: true,
    refuses_future: true,
    compares_balance: true,
};

const fn with_panel(trigger: Trigger) -> Guards {
    Guards { panel: PanelPresence::PanelByTrigger(trigger), ..DAEMONS }
}

const fn size(daemons: usize, instances: usize, hours: u8) -> Size {
    Size { daemons, instances, hours }
}

const fn holds(name: &'static str, what: &'static str, guards: Guards, size: Size) -> Variant {
    Variant { name, what, breaks: None, guards, size }
}

const fn breaks(
    name: &'static str,
    what: &'static str,
    property: &'static str,
    guards: Guards,
    size: Size,
) -> Variant {
    Variant { name, what, breaks: Some(property), guards, size }
}

/// Every variant: those that hold, then those that miss something.
pub const VARIANTS: &[Variant] = &[
    holds("daemons", "several daemons", DAEMONS, size(3, 2, 3)),
    holds("panel-two-instances", "daemons and the panel", PANEL, size(2, 2, 2)),
    holds("panel-three-daemons", "daemons and the panel", PANEL, size(3, 1, 3)),
    holds(
        "fail-over",
        "several daemons, and a replica that lost commits takes over",
        Guards { fail_over: true, ..DAEMONS },
        size(2, 2, 2),
    ),
    holds(
        "panel-raises-always",
        "daemons and the panel, of which each debit raises the fencing token",
        with_panel(Trigger { raises_token: Raises::Always, ..TRIGGER }),
        size(2, 1, 3),
    ),
    // Three guards against a double charge, of which each is enough.
    holds(
        "lock-alone",
        "daemons and the panel; nothing but the read under lock",
        Guards { compares_watermark: false, key: false, ..PANEL },
        size(2, 1, 3),
    ),
    holds(
        "watermark-alone",
        "daemons and the panel; nothing but the compared watermark",
        Guards { reads_under_lock: false, key: false, ..PANEL },
        size(2, 1, 3),
    ),
    holds(
        "key-alone",
        "daemons and the panel; nothing but the unique key",
        Guards { reads_under_lock: false, compares_watermark: false, ..PANEL },
        size(2, 1, 3),
    ),
    breaks(
        "no-fencing-check",
        "no fencing token check in the transaction",
        FENCING,
        Guards { check: Check::Nothing, ..DAEMONS },
        size(2, 2, 2),
    ),
    breaks(
        "unlocked-fencing-row",
        "the fencing row is checked without FOR SHARE",
        FENCING,
        Guards { check: Check::Unlocked, ..DAEMONS },
        size(2, 2, 2),
    ),
    breaks(
        "lease-row-only",
        "one row: the lease is checked, and no fencing token raised",
        FENCING,
        Guards { check: Check::LeaseRowOnly, ..DAEMONS },
        size(2, 2, 2),
    ),
    breaks(
        "swapped",
        "the fencing row is raised before the lease row is claimed",
        FENCING,
        Guards { lease_first: false, ..PANEL },
        size(1, 1, 2),
    ),
    breaks(
        "stale-list",
        "a stale list, the watermark not compared, no key",
        ONCE,
        Guards { reads_under_lock: false, compares_watermark: false, key: false, ..DAEMONS },
        size(1, 1, 1),
    ),
    breaks(
        "heartbeat-alone",
        "the panel without the trigger: the heartbeat rule alone",
        ONCE,
        Guards { panel: PanelPresence::PanelByHeartbeat, ..DAEMONS },
        size(1, 1, 2),
    ),
    breaks(
        "no-meter",
        "the trigger does not move the meter",
        KNOWN,
        with_panel(Trigger { moves_meter: false, ..TRIGGER }),
        size(1, 1, 2),
    ),
    breaks(
        "no-ledger",
        "the trigger writes neither meter nor ledger: the panel guard alone",
        ONCE,
        with_panel(Trigger { moves_meter: false, writes_ledger: false, ..TRIGGER }),
        size(1, 1, 2),
    ),
    breaks(
        "future",
        "the trigger lets the panel debit hours that have not ended",
        ENDED,
        with_panel(Trigger { refuses_future: false, ..TRIGGER }),
        size(1, 1, 2),
    ),
    breaks(
        "no-raise",
        "the trigger lets the panel bill without raising the fencing token",
        FENCING,
        with_panel(Trigger { raises_token: Raises::Never, ..TRIGGER }),
        size(2, 1, 2),
    ),
    breaks(
        "raise-in-force",
        "the trigger raises the fencing token above the holder only, not above a claim that is half made",
        FENCING,
        with_panel(Trigger { raises_token: Raises::AboveHolder, ..TRIGGER }),
        size(2, 1, 2),
    ),
    breaks(
        "overwritten-balance",
        "the trigger does not look at the balance that the panel overwrote",
        WALLET,
        with_panel(Trigger { compares_balance: false, ..TRIGGER }),
        size(2, 1, 2),
    ),
    breaks(
        "panel-fail-over",
        "the panel continues after a replica that lost its debit took over (one hour is never charged)",
        WHOLE,
        Guards { fail_over: true, ..PANEL },
        size(1, 1, 2),
    ),
];
