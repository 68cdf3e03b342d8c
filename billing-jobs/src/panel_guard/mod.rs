//! The triggers that hold back the panel's built-in biller while our billing works.

mod trigger;

pub use self::trigger::{InstallReport, PanelGuardError, PanelGuardStatus, install, remove, status};
pub(crate) use self::trigger::{is_effective_sql, is_installed};
