//! Whether a panel uses the same database, and what prevents it from charging the same hours.

use std::{fmt, time::Duration};

use billing_scheduler::duration;

use billing_jobs::{
    panel::{self, Generation},
    panel_guard::{self, PanelGuardStatus},
};

use crate::{
    config::PanelBilling,
    exit::{Exit, Failure},
    panel_database::PanelDatabase,
};

/// How long the detection may take at a reload: no job starts until then.
const DETECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The panel on this database, as it was detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PanelPresence {
    pub(crate) generation: Generation,
    /// Whether a panel made the tables, and not the migration of this project.
    pub(crate) present: bool,
    pub(crate) panel_guard: PanelGuardStatus,
}

impl PanelPresence {
    /// Detects the panel, and changes nothing.
    pub(crate) async fn detect(PanelDatabase { db, panel }: &PanelDatabase) -> Result<Self, Failure> {
        let failed = |error| Failure::database("detect the panel", &error);
        let present = panel::is_present(db).await.map_err(failed)?;
        Ok(Self {
            generation: panel.generation,
            present,
            panel_guard: panel_guard::status(db).await.map_err(failed)?,
        })
    }

    /// Detects the panel within a few seconds.
    pub(crate) async fn detect_with_timeout(opened: PanelDatabase) -> Result<Self, Failure> {
        with_timeout(DETECT_TIMEOUT, async move { Self::detect(&opened).await }).await
    }

    /// Whether there is something to report.
    pub(crate) fn is_relevant(self) -> bool {
        self.present || self.panel_guard.installed
    }

    /// Whether the panel charges every hour itself and reads no heartbeat, so that only the panel guard holds it back.
    fn panel_bills(self, billing: PanelBilling) -> bool {
        self.present && self.generation != Generation::G1 && billing == PanelBilling::On
    }

    /// Whether billing may charge only while the panel guard is effective: where the panel would charge the same hours, and where
    /// the panel guard is installed, so that the operator relies on it.
    pub(crate) fn needs_guard(self, billing: PanelBilling) -> bool {
        self.panel_bills(billing) || self.panel_guard.effective
    }

    /// Fails if the panel would charge the same hours.
    pub(crate) fn ensure_may_charge(self, billing: PanelBilling) -> Result<(), Failure> {
        if !self.panel_bills(billing) || self.panel_guard.effective {
            return Ok(());
        }
        let state = match (self.panel_guard.installed, self.panel_guard.enabled) {
            (false, _) => "install the panel guard",
            (true, false) => "enable the panel guard",
            (true, true) => "update the panel guard to this version",
        };
        let message = format!(
            "a panel of generation {} bills without reading the heartbeat, so hours would be charged twice: {state} with \
             `billing-daemon guard install`, or switch the panel's billing off and set `panel-billing = \"off\"` in the \
             [daemon] section of jobs.toml",
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

/// Returns what `detect` returns within `limit`. After that it continues in the background: a query is never cancelled.
async fn with_timeout<T: Send + 'static>(
    limit: Duration,
    detect: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, tokio::spawn(detect)).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(Failure::new(Exit::Internal, panic)),
        Err(_) => {
            let limit = duration::format_rounded(limit);
            Err(Failure::new(Exit::TryAgain, format!("cannot detect the panel: no answer within {limit}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn slow_detection_is_not_cancelled() {
        let (proceed, proceeding) = oneshot::channel();
        let (finish, finished) = oneshot::channel();
        let detect = async {
            proceeding.await.expect("the test sends it");
            finish.send(()).expect("the test waits for it");
            Ok(())
        };
        let result = with_timeout(Duration::from_millis(10), detect);
        let result = tokio::time::timeout(Duration::from_mins(1), result).await.expect("it has a limit");
        let failure = result.expect_err("it cannot finish");
        assert_eq!(failure.exit, Exit::TryAgain);
        assert_eq!(failure.message, "cannot detect the panel: no answer within 10ms");
        proceed.send(()).expect("the detection still runs");
        finished.await.expect("the detection finishes");
    }

    #[tokio::test]
    async fn result_within_limit_is_returned() {
        let limit = Duration::from_mins(10);
        assert_eq!(with_timeout(limit, async { Ok(7) }).await.expect("a result"), 7);
        let failed = with_timeout::<()>(limit, async { Err(Failure::new(Exit::Unavailable, "gone")) }).await;
        assert_eq!(failed.expect_err("a failure").message, "gone");
        let panicked = with_timeout::<()>(limit, async { panic!("a bug") }).await;
        assert!(panicked.expect_err("a panic").message.contains("a bug"));
    }

    const GUARD: PanelGuardStatus =
        PanelGuardStatus { installed: true, enabled: true, effective: true, outdated: false };

    #[test]
    fn only_competing_panel_is_rejected() {
        let off = PanelGuardStatus::default();
        let disabled = PanelGuardStatus { enabled: false, effective: false, ..GUARD };
        let other = PanelGuardStatus { effective: false, outdated: true, ..GUARD };
        for (generation, present, panel_guard, billing, rejected) in [
            (Generation::G1, true, off, PanelBilling::On, false),
            (Generation::G2, true, off, PanelBilling::On, true),
            (Generation::G3, true, off, PanelBilling::On, true),
            (Generation::G3, true, disabled, PanelBilling::On, true),
            (Generation::G3, true, other, PanelBilling::On, true),
            (Generation::G3, true, GUARD, PanelBilling::On, false),
            (Generation::G3, true, off, PanelBilling::Off, false),
            (Generation::G3, false, off, PanelBilling::On, false),
        ] {
            let presence = PanelPresence { generation, present, panel_guard };
            assert_eq!(presence.ensure_may_charge(billing).is_err(), rejected, "{presence:?}, {billing:?}");
            assert_eq!(
                presence.needs_guard(billing),
                rejected || panel_guard.effective,
                "{presence:?}, {billing:?}"
            );
        }
    }

    #[test]
    fn presence_is_described() {
        for (present, panel_guard, text) in [
            (true, GUARD, "with a panel of generation G3; the panel guard is on"),
            (
                true,
                PanelGuardStatus::default(),
                "with a panel of generation G3; the panel guard is off: install it with `billing-daemon guard install`",
            ),
            (false, PanelGuardStatus::default(), "on tables of generation G3 without a panel"),
        ] {
            assert_eq!(PanelPresence { generation: Generation::G3, present, panel_guard }.to_string(), text);
        }
    }
}
