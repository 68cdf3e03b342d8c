//! Which of the panel's schema generations a database has, detected from its catalog and never from the number of a migration.

use std::fmt;

use sea_orm::{DatabaseConnection, DbBackend, DbErr, Statement};

use crate::money::WalletUnit;
use billing_store::query_one;

/// A generation of the panel's schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Generation {
    /// October 2025: cents, no backups, reads the daemon's heartbeat.
    G1,
    /// November 2025: cents, backups.
    G2,
    /// May 2026: hundredths of a cent, backups, row-level security. Also what our own migrations make.
    G3,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::G1 => "G1",
            Self::G2 => "G2",
            Self::G3 => "G3",
        })
    }
}

/// The properties of the panel's tables that billing depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panel {
    /// The database system.
    pub backend: DbBackend,
    /// The generation of the schema.
    pub generation: Generation,
    /// What a wallet, and the ledger, can hold.
    pub unit: WalletUnit,
    /// Whether plans and instances have backups.
    pub backups: bool,
    /// Whether plans and instances name their provider.
    pub providers: bool,
    /// Whether writing to wallets needs the administrator's setting.
    pub row_security: bool,
}

impl Panel {
    /// What our migrations make of an empty SQLite database.
    pub const OURS_ON_SQLITE: Self = Self {
        backend: DbBackend::Sqlite,
        generation: Generation::G3,
        unit: WalletUnit::HundredthOfCent,
        backups: true,
        providers: true,
        row_security: false,
    };

    /// Reads the catalog. Changes nothing.
    pub async fn detect(db: &DatabaseConnection) -> Result<Self, DbErr> {
        let backend = db.get_database_backend();
        if backend == DbBackend::Sqlite {
            return Ok(Self::OURS_ON_SQLITE);
        }
        let row = query_one(db, Statement::from_string(backend, CATALOG)).await?;
        let row = row.ok_or_else(|| DbErr::RecordNotFound("the catalog answered with no row".to_owned()))?;
        let scale: i32 = row.try_get("", "scale")?;
        let backups: bool = row.try_get("", "backups")?;
        let providers: bool = row.try_get("", "providers")?;
        let row_security: bool = row.try_get("", "row_security")?;
        let unit = if scale >= 4 { WalletUnit::HundredthOfCent } else { WalletUnit::Cent };
        let generation = match (backups, unit) {
            (false, _) => Generation::G1,
            (true, WalletUnit::Cent) => Generation::G2,
            (true, WalletUnit::HundredthOfCent) => Generation::G3,
        };
        Ok(Self { backend, generation, unit, backups, providers, row_security })
    }
}

/// Whether a panel uses this database, and may bill on its own: it has tables that only a panel creates.
pub async fn is_present(db: &DatabaseConnection) -> Result<bool, DbErr> {
    if db.get_database_backend() == DbBackend::Sqlite {
        return Ok(false);
    }
    let row = query_one(db, Statement::from_string(db.get_database_backend(), HAS_PANEL_TABLES)).await?;
    row.map_or(Ok(false), |row| row.try_get("", "present"))
}

const HAS_PANEL_TABLES: &str = "
SELECT to_regclass('schema_migrations') IS NOT NULL OR to_regclass('activity_logs') IS NOT NULL AS present";

/// The narrowest scale of the columns that a charge is written to, and what else sets the generations apart.
const CATALOG: &str = "
SELECT
    (SELECT min(CASE WHEN atttypmod < 4 THEN 4 ELSE (atttypmod - 4) & 65535 END)
       FROM pg_attribute
      WHERE (attrelid, attname) IN ((to_regclass('wallets'), 'balance'),
                                    (to_regclass('payment_transactions'), 'amount'),
                                    (to_regclass('vps_billing_cycles'), 'total_amount')))::int4 AS scale,
    (SELECT count(*) = 3
       FROM pg_attribute
      WHERE NOT attisdropped
        AND (attrelid, attname) IN ((to_regclass('vps_instances'), 'backup_frequency'),
                                    (to_regclass('vps_plans'), 'backup_price_hourly'),
                                    (to_regclass('vps_plans'), 'backup_upcharge_hourly'))) AS backups,
    (SELECT count(*) = 2
       FROM pg_attribute
      WHERE NOT attisdropped
        AND (attrelid, attname) IN ((to_regclass('vps_instances'), 'provider_id'),
                                    (to_regclass('vps_plans'), 'provider_id'))) AS providers,
    coalesce((SELECT relrowsecurity FROM pg_class WHERE oid = to_regclass('wallets')), false) AS row_security";
