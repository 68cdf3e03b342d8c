//! Who else bills on this database: whether a panel lives in it, and what holds that back while we charge.

use std::{fmt, time::Duration};

use billing_jobs::{
    panel::{self, Generation},
    panel_guard::{self, PanelGuardStatus},
};

use crate::{
    config::PanelBilling,
    exit::{Exit, Failure},
    panel_database::PanelDatabase,
};

/// How long a database may take to tell who else bills, when a configuration is read again: until then, nothing is rung.
const DETECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What was found at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PanelPresence {
    pub(crate) generation: Generation,
    /// Whether there is a panel at all, or our own migration made the tables.
    pub(crate) present: bool,
    pub(crate) panel_guard: PanelGuardStatus,
}

impl PanelPresence {
    /// Looks, and changes nothing.
    pub(crate) async fn detect(PanelDatabase { db, panel }: &PanelDatabase) -> Result<Self, Failure> {
        let failed = |error| Failure::database("find out who else bills", &error);
        let present = panel::is_present(db).await.map_err(failed)?;
        Ok(Self {
            generation: panel.generation,
            present,
            panel_guard: panel_guard::status(db).await.map_err(failed)?,
        })
    }

    /// The same, if the database tells it soon.
    pub(crate) async fn detect_with_timeout(opened: PanelDatabase) -> Result<Self, Failure> {
        with_timeout(DETECT_TIMEOUT, async move { Self::detect(&opened).await }).await
    }

    /// Whether there is anything to tell.
    pub(crate) fn is_relevant(self) -> bool {
        self.present || self.panel_guard.installed
    }

    /// Whether the panel charges every hour itself and reads no heartbeat, so that only the panel guard holds it back.
    fn panel_bills(self, billing: PanelBilling) -> bool {
        self.present && self.generation != Generation::G1 && billing == PanelBilling::On
    }

    /// Whether billing may charge only while the panel guard is effective: where the panel would charge the same hours, and where the panel guard
    /// was found at the start, so that the operator relies on it.
    pub(crate) fn needs_guard(self, billing: PanelBilling) -> bool {
        self.panel_bills(billing) || self.panel_guard.effective
    }

    /// Refuses to charge beside a panel that would charge the same hours.
    pub(crate) fn ensure_may_charge(self, billing: PanelBilling) -> Result<(), Failure> {
        if !self.panel_bills(billing) || self.panel_guard.effective {
            return Ok(());
        }
        let state = match (self.panel_guard.installed, self.panel_guard.enabled) {
            (false, _) => "hold it back with",
            (true, false) => "the panel guard that should hold it back is disabled: run",
            (true, true) => "the panel guard that should hold it back is not the one of this version: run",
        };
        let message = format!(
            "the panel is of generation {}, which bills by itself and reads no heartbeat, so hours would be charged \
             twice: {state} `billing-daemon guard install`, or switch its billing off and say \
             `panel-billing = \"off\"` in the [daemon] section of jobs.toml",
            self.generation
        );
        Err(Failure::new(Exit::Configuration, message))
    }
}

impl fmt::Display for PanelPresence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, present, panel_guard } = *self;
        if present {
            write!(f, "with a panel of generation {generation}")?;
        } else {
            write!(f, "on tables of generation {generation} without a panel")?;
        }
        if self.is_relevant() { write!(f, "; {panel_guard}") } else { Ok(()) }
    }
}

/// What `look` tells within `limit`. It goes on after that, for nobody: what is asked of a database is never given up half-way.
async fn with_timeout<T: Send + 'static>(
    limit: Duration,
    look: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, tokio::spawn(look)).await {
        Ok(Ok(told)) => told,
        Ok(Err(panic)) => Err(Failure::new(Exit::Internal, panic)),
        Err(_) => {
            let limit = humantime::format_duration(limit);
            Err(Failure::new(Exit::TryAgain, format!("the database did not say in {limit} who else bills")))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_database_that_does_not_answer_is_not_waited_for_and_its_answer_is_not_cut_off() {
        let (go_on, gone_on) = oneshot::channel();
        let (answered, answer) = oneshot::channel();
        let look = async {
            gone_on.await.expect("it is told to");
            answered.send(()).expect("somebody waits for it here");
            Ok(())
        };
        let told = with_timeout(Duration::from_millis(10), look);
        let told = tokio::time::timeout(Duration::from_mins(1), told).await.expect("it has a limit");
        let failure = told.expect_err("nothing was told");
        assert_eq!(failure.exit, Exit::TryAgain);
        assert_eq!(failure.message, "the database did not say in 10ms who else bills");
        go_on.send(()).expect("nobody gave it up");
        answer.await.expect("it came to its end");
    }

    #[tokio::test]
    async fn an_answer_in_time_is_told_as_it_is() {
        let limit = Duration::from_mins(10);
        assert_eq!(with_timeout(limit, async { Ok(7) }).await.expect("told"), 7);
        let refused = with_timeout::<()>(limit, async { Err(Failure::new(Exit::Unavailable, "gone")) }).await;
        assert_eq!(refused.expect_err("refused").message, "gone");
        let panicked = with_timeout::<()>(limit, async { panic!("a bug") }).await;
        assert!(panicked.expect_err("a panic").message.contains("a bug"));
    }

    const FENCE: PanelGuardStatus =
        PanelGuardStatus { installed: true, enabled: true, effective: true, outdated: false };

    #[test]
    fn only_a_panel_that_would_charge_the_same_hours_is_refused() {
        let off = PanelGuardStatus::default();
        let disabled = PanelGuardStatus { enabled: false, effective: false, ..FENCE };
        let other = PanelGuardStatus { effective: false, outdated: true, ..FENCE };
        for (generation, present, panel_guard, billing, refused) in [
            (Generation::G1, true, off, PanelBilling::On, false),
            (Generation::G2, true, off, PanelBilling::On, true),
            (Generation::G3, true, off, PanelBilling::On, true),
            (Generation::G3, true, disabled, PanelBilling::On, true),
            (Generation::G3, true, other, PanelBilling::On, true),
            (Generation::G3, true, FENCE, PanelBilling::On, false),
            (Generation::G3, true, off, PanelBilling::Off, false),
            (Generation::G3, false, off, PanelBilling::On, false),
        ] {
            let presence = PanelPresence { generation, present, panel_guard };
            assert_eq!(presence.ensure_may_charge(billing).is_err(), refused, "{presence:?}, {billing:?}");
            assert_eq!(
                presence.needs_guard(billing),
                refused || panel_guard.effective,
                "{presence:?}, {billing:?}"
            );
        }
    }

    #[test]
    fn it_says_what_it_found() {
        for (present, panel_guard, said) in [
            (true, FENCE, "with a panel of generation G3; the panel guard is on"),
            (
                true,
                PanelGuardStatus::default(),
                "with a panel of generation G3; the panel guard is off: install it with `billing-daemon guard install`",
            ),
            (false, PanelGuardStatus::default(), "on tables of generation G3 without a panel"),
        ] {
            assert_eq!(PanelPresence { generation: Generation::G3, present, panel_guard }.to_string(), said);
        }
    }
}
