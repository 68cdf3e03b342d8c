//! The generations of the panel, and the roles that connect to its database.

/// The role that owns the panel's tables.
pub const OWNER_ROLE: &str = "panel_owner";

/// The role of a daemon that may do what billing needs and nothing else.
pub const BILLING_ROLE: &str = "billing_run";

/// The role that only reads.
pub const READING_ROLE: &str = "billing_read";

/// The content of a database before our migrations: the panel's schema of one generation, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panel {
    /// No panel: our migrations create its tables.
    Empty,
    /// October 2025: cents, no backups, has the daemon's status table.
    G1,
    /// November 2025: cents and backups.
    G2,
    /// May 2026: hundredths of a cent, row-level security.
    G3,
}

impl Panel {
    pub(crate) fn schema(self) -> &'static str {
        match self {
            Self::Empty => "",
            Self::G1 => include_str!("../schemas/g1.sql"),
            Self::G2 => include_str!("../schemas/g2.sql"),
            Self::G3 => include_str!("../schemas/g3.sql"),
        }
    }
}

/// The role of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// The server's superuser: nothing is refused, row-level security does not apply.
    Admin,
    /// The role that owns the panel's tables: [`OWNER_ROLE`].
    Owner,
    /// The role of the daemon: [`BILLING_ROLE`].
    Billing,
    /// A role that only reads: [`READING_ROLE`].
    Reading,
}

impl Login {
    pub(crate) fn role(self) -> &'static str {
        match self {
            Self::Admin => "postgres",
            Self::Owner => OWNER_ROLE,
            Self::Billing => BILLING_ROLE,
            Self::Reading => READING_ROLE,
        }
    }
}
