//! Who else bills on this database: whether a panel lives in it, and what holds that back while we charge.

use std::{fmt, time::Duration};

use billing_jobs::{
    fence::{self, FenceStatus},
    panel::{self, Generation},
};
use tracing::warn;

use crate::{
    commands::fence::in_words,
    config::PanelBilling,
    exit::{Exit, Failure},
    runtime::Opened,
};

/// What was found at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beside {
    pub(crate) generation: Generation,
    /// Whether there is a panel at all, or our own migration made the tables.
    pub(crate) inhabited: bool,
    pub(crate) fence: FenceStatus,
}

impl Beside {
    /// Looks, and changes nothing.
    pub(crate) async fn look(Opened { db, panel }: &Opened) -> Result<Self, Failure> {
        let failed = |error| Failure::database("find out who else bills", &error);
        let inhabited = panel::is_inhabited(db).await.map_err(failed)?;
        Ok(Self { generation: panel.generation, inhabited, fence: fence::status(db).await.map_err(failed)? })
    }

    /// Whether there is anything to tell.
    pub(crate) fn concerns_anybody(self) -> bool {
        self.inhabited || self.fence.installed
    }

    /// Refuses to charge beside a panel that would charge the same hours.
    pub(crate) fn check(self, billing: PanelBilling) -> Result<(), Failure> {
        let safe = !self.inhabited || self.generation == Generation::G1 || self.fence.is_on();
        if safe || billing == PanelBilling::Off {
            return Ok(());
        }
        let message = format!(
            "the panel beside us is of generation {}, which bills by itself and reads no heartbeat, so hours would be charged \
             twice: hold it back with `billing-daemon fence install`, or switch its billing off and say \
             `panel-billing = \"off\"` in the [daemon] section of jobs.toml",
            self.generation
        );
        Err(Failure::new(Exit::Configuration, message))
    }

    /// A fence that opens between two billings of a healthy daemon holds nobody back.
    pub(crate) fn warn_of_gaps(self, interval: Duration) {
        if self.fence.is_on()
            && let Some(after) = self.fence.after.filter(|after| *after <= interval)
        {
            let (after, interval) = (humantime::format_duration(after), humantime::format_duration(interval));
            warn!(
                "the fence lets the panel bill after {after} of silence, and billing runs every {interval}: the panel will \
                 bill in between; run `billing-daemon fence install --after` with a longer time"
            );
        }
    }
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, inhabited, fence } = *self;
        if inhabited {
            write!(f, "beside a panel of generation {generation}")?;
        } else {
            write!(f, "on tables of generation {generation} without a panel")?;
        }
        if self.concerns_anybody() { write!(f, "; {}", in_words(fence)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FENCE: FenceStatus =
        FenceStatus { installed: true, enabled: true, after: Some(Duration::from_mins(90)), outdated: false };

    #[test]
    fn only_a_panel_that_would_charge_the_same_hours_is_refused() {
        let off = FenceStatus::default();
        let disabled = FenceStatus { enabled: false, ..FENCE };
        for (generation, inhabited, fence, billing, refused) in [
            (Generation::G1, true, off, PanelBilling::On, false),
            (Generation::G2, true, off, PanelBilling::On, true),
            (Generation::G3, true, off, PanelBilling::On, true),
            (Generation::G3, true, disabled, PanelBilling::On, true),
            (Generation::G3, true, FENCE, PanelBilling::On, false),
            (Generation::G3, true, off, PanelBilling::Off, false),
            (Generation::G3, false, off, PanelBilling::On, false),
        ] {
            let beside = Beside { generation, inhabited, fence };
            assert_eq!(beside.check(billing).is_err(), refused, "{beside:?}, {billing:?}");
        }
    }

    #[test]
    fn it_says_what_it_found() {
        for (inhabited, fence, said) in [
            (
                true,
                FENCE,
                "beside a panel of generation G3; the fence is on (the panel may bill after 1h 30m of silence)",
            ),
            (
                true,
                FenceStatus::default(),
                "beside a panel of generation G3; the fence is off: `billing-daemon fence install` puts it up",
            ),
            (false, FenceStatus::default(), "on tables of generation G3 without a panel"),
        ] {
            assert_eq!(Beside { generation: Generation::G3, inhabited, fence }.to_string(), said);
        }
    }
}
