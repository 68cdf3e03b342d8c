//! `standing show`: one organization, and what a suspension would need.

use billing_jobs::prepaid::Level;
use clap::Args;

use super::{find, open};
use crate::{
    commands::{args::JsonArgs, session::Session},
    exit::Failure,
    format::instant,
    output::{self, Report, json as say_json},
    prepaid::{StandingView, level_in_words},
};

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The organization: its id, slug or name
    #[arg(value_name = "ORGANIZATION")]
    pub(super) organization: String,
    #[command(flatten)]
    pub(super) format: JsonArgs,
}

pub(super) async fn show(session: &Session<'_>, options: &ShowArgs) -> Result<(), Failure> {
    let (prepaid, opened) = open(session).await?;
    let found = find(&prepaid, &opened.db, &options.organization).await?;
    let standing = StandingView::of(&prepaid, &found);
    if options.format.json {
        say_json(&standing);
    } else {
        output::report(&report(&standing));
    }
    Ok(())
}

fn report(standing: &StandingView) -> Report {
    let StandingView { wallet, since, suspension, .. } = standing;
    let mut report = Report::default();
    report.add("organization", format!("{} ({})", wallet.organization, wallet.name));
    report.add("state", format!("{} since {}, episode {}", wallet.state, instant(*since), wallet.episode));
    report.add("runway", wallet.runway_in_words());
    report.add_some("problem", wallet.problem.as_deref());
    let currency = wallet.currency.map(|currency| format!(" {currency}")).unwrap_or_default();
    report.add_some("balance", wallet.balance.as_ref().map(|amount| format!("{amount}{currency}")));
    report.add_some("owed", wallet.owed.as_ref().map(|amount| format!("{amount}{currency}")));
    report.add_some("per hour", wallet.burn_per_hour.as_ref().map(|amount| format!("{amount}{currency}")));
    report.add_list(
        "notices",
        wallet.notices.iter().map(|notice| {
            format!("{}: {} {}", level_in_words(Level(notice.level)), notice.outcome, instant(notice.at))
        }),
    );
    let earliest = suspension.earliest.map_or_else(|| "not foreseeable".to_owned(), instant);
    report.add("suspension", format!("earliest: {earliest}"));
    report.add_list("", suspension.unmet.iter().map(|unmet| format!("- {}", unmet.detail)));
    report
}
