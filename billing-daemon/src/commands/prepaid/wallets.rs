//! `wallets`: how many hours each wallet covers.

use std::time::Duration;

use billing_jobs::prepaid::{Level, Runway};
use billing_scheduler::duration;
use clap::{Args, value_parser};

use super::{open, selected};
use crate::{
    commands::{complain, session::Session},
    exit::Failure,
    output::{Left, Right, json_element, line as say, table},
    prepaid::{WalletView, level_in_words},
};

#[derive(Debug, Args)]
pub(crate) struct WalletsArgs {
    /// Only wallets that cover fewer hours than this duration
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    below: Option<Duration>,
    /// Only this organization: its id, slug or name
    #[arg(long, value_name = "ORGANIZATION")]
    organization: Option<String>,
    /// Maximum number of wallets, those with the shortest runway [default: 1000]
    #[arg(long, value_name = "N", default_value_t = 1_000, hide_default_value = true, value_parser = value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

pub(crate) async fn execute(session: &Session<'_>, options: &WalletsArgs) -> Result<(), Failure> {
    let (prepaid, opened) = open(session).await?;
    let below = options.below.map(|below| below.as_secs().div_ceil(3_600));
    let below = below.map(|below| i64::try_from(below).unwrap_or(i64::MAX));
    // A wallet of which this is unknown needs attention as well.
    let is_below = |runway: Option<Runway>| match (below, runway) {
        (Some(below), Some(runway)) => !runway.covers(below),
        _ => true,
    };
    let limit = usize::try_from(options.limit).unwrap_or(usize::MAX);
    let mut wallets: Vec<WalletView> = Vec::new();
    let mut found_wallets = 0_u64;
    selected(&prepaid, &opened.db, options.organization.as_deref(), |found| {
        if is_below(found.facts.runway) {
            found_wallets += 1;
            wallets.push(WalletView::from(&found));
            // Of a large fleet, no more than twice the limit is kept.
            if wallets.len() >= 2 * limit {
                keep_shortest(&mut wallets, limit);
            }
        }
    })
    .await?;
    keep_shortest(&mut wallets, limit);
    let more = found_wallets.saturating_sub(options.limit.into());
    if more > 0 {
        complain(&format!("{more} wallets with a longer runway are not shown: use --limit or --below"));
    }
    if options.json {
        for (n, wallet) in wallets.iter().enumerate() {
            json_element(if n == 0 { '[' } else { ',' }, wallet);
        }
        say(if wallets.is_empty() { "[]" } else { "]" });
        return Ok(());
    }
    if wallets.is_empty() {
        say("no wallet");
        return Ok(());
    }
    let heads = [
        Left("ORGANIZATION"),
        Left("NAME"),
        Left("STATE"),
        Right("RUNWAY"),
        Right("BALANCE"),
        Right("OWED"),
        Right("PER HOUR"),
        Left("LAST NOTICE"),
    ];
    table(heads, &wallets.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn keep_shortest(wallets: &mut Vec<WalletView>, limit: usize) {
    wallets.sort_by_key(|wallet| wallet.runway);
    wallets.truncate(limit);
}

fn row(wallet: &WalletView) -> [String; 8] {
    let currency = wallet.currency.map(|currency| format!(" {currency}")).unwrap_or_default();
    let amount = |amount: &Option<String>| amount.clone().unwrap_or_else(|| "?".to_owned());
    let last = wallet.notices.last().map(|notice| level_in_words(Level(notice.level))).unwrap_or_default();
    [
        wallet.organization.clone(),
        wallet.name.clone(),
        wallet.state.to_owned(),
        wallet.runway_in_words(),
        format!("{}{currency}", amount(&wallet.balance)),
        amount(&wallet.owed),
        amount(&wallet.burn_per_hour),
        wallet.problem.clone().unwrap_or(last),
    ]
}
