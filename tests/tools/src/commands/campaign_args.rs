//! The options of a campaign against daemons on one database.

use clap::Args;

use crate::Engine;

#[derive(Args)]
pub(super) struct CampaignArgs {
    /// Database that the daemons share
    #[arg(long, value_enum)]
    pub(super) database: Engine,
    /// Seconds during which faults are injected
    #[arg(long, default_value_t = 120)]
    pub(super) seconds: u64,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Safeguards to remove from the daemons, separated by commas
    #[arg(long)]
    pub(super) mutation: Option<String>,
    /// End with one line of JSON
    #[arg(long)]
    pub(super) json: bool,
}
