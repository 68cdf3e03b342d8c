//! A billed fleet of any size, written in SQL within seconds, and a panel without the indexes that no statement may need.

use sea_orm::DbBackend;

use crate::Db;

/// The indexes of a panel that are not keys. Some panels lack all of them.
const OPTIONAL_INDEXES: [&str; 5] = [
    "idx_wallets_organization_id",
    "idx_vps_instances_organization_id",
    "idx_vps_instances_last_billed_at",
    "idx_payment_transactions_organization_id",
    "idx_vps_billing_cycles_vps_instance_id",
];

impl Db {
    /// Writes a fleet that paid, with its history: each of these instances paid so many hours, one at a time. They are labelled
    /// `vps-0`, `vps-1` and so on; five of them share a wallet; nothing is due.
    pub async fn seed_ledger(&self, instances: u32, hours: u32) {
        let sql = match self.backend() {
            DbBackend::Sqlite => include_str!("ledger_sqlite.sql"),
            _ => include_str!("ledger_postgres.sql"),
        };
        let sql = sql.replace("{instances}", &instances.to_string()).replace("{hours}", &hours.to_string());
        self.execute(&sql).await;
    }

    /// Drops every index of the panel's tables that is not a key.
    pub async fn drop_optional_indexes(&self) {
        for index in OPTIONAL_INDEXES {
            self.execute(&format!("DROP INDEX IF EXISTS {index}")).await;
        }
    }
}
