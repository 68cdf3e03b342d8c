//! `adopt`: takes billing over from the panel's built-in biller.

use billing_jobs::billing::{Adoption, Biller, PriceDifference};
use clap::Args;
use serde_json::{Map, Value, json};

use super::{
    bill,
    handover::{failed, table},
    session::Session,
};
use crate::{
    exit::Failure,
    format::count,
    host::identity::operator_name,
    output::{json as say_json, layout as say_lines},
    status::panel_presence::PanelPresence,
};

#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The most findings of one kind that are printed.
const PRINTED: usize = 5;
/// The most instances with a price that differs from the panel's that are printed.
const PRICES_PRINTED: usize = 20;

pub(super) async fn execute(session: &Session<'_>, options: &AdoptArgs) -> Result<(), Failure> {
    let settings = bill::settings(&session.load()?.config)?;
    let opened = session.panel().await?;
    let presence = PanelPresence::detect(&opened).await?;
    let biller = Biller::new(opened.db, opened.panel, settings);
    let adoption = biller.adopt(!options.dry_run, &operator_name()).await.map_err(failed)?;
    if options.json {
        say_json(&in_json(&adoption, presence, options.dry_run));
    } else {
        say_lines(&in_words(&adoption, presence, options.dry_run));
    }
    Ok(())
}

fn in_json(adoption: &Adoption, presence: PanelPresence, dry_run: bool) -> Value {
    let findings: Map<String, Value> =
        adoption.findings.iter().map(|(kind, findings)| (kind.clone(), json!(findings))).collect();
    json!({
        "dry_run": dry_run,
        "as_of": adoption.as_of,
        "generation": presence.generation.to_string(),
        "panel": presence.present,
        "guard": presence.panel_guard.effective,
        "wallets": adoption.wallets,
        "baselines": adoption.baselines,
        "drift": adoption.drift,
        "instances": adoption.instances,
        "meters": adoption.meters,
        "due_instances": adoption.due_instances,
        "due_hours": adoption.due_hours,
        "due_amounts": adoption.due_amounts,
        "due_unpriced": adoption.due_unpriced,
        "price_differences": adoption.price_differences,
        "findings": findings,
    })
}

fn in_words(adoption: &Adoption, presence: PanelPresence, dry_run: bool) -> String {
    let drifting = adoption.findings.get("drift").map_or(0, |findings| findings.count);
    let mut rows = vec![
        ["wallets".to_owned(), adoption.wallets.to_string(), String::new()],
        [
            "  baselines".to_owned(),
            adoption.baselines.to_string(),
            "first balances, where the audit starts".to_owned(),
        ],
        ["  drifting".to_owned(), drifting.to_string(), format!("by {} in total", adoption.drift)],
        ["instances".to_owned(), adoption.instances.to_string(), String::new()],
        ["  meters".to_owned(), adoption.meters.to_string(), "set to where the panel stopped".to_owned()],
        [
            "  due".to_owned(),
            adoption.due_instances.to_string(),
            format!("{}, {}", count(adoption.due_hours, "hour"), adoption.due()),
        ],
    ];
    rows.extend(price_rows(&adoption.price_differences));
    for (kind, findings) in &adoption.findings {
        let printed = findings.listed.iter().take(PRINTED).cloned();
        let printed: Vec<String> = printed.collect();
        let more = findings.count - printed.len() as u64;
        let more = (more > 0).then(|| format!("and {more} more: see --json"));
        let mut sentences = printed.into_iter().chain(more);
        rows.push([kind.clone(), findings.count.to_string(), sentences.next().unwrap_or_default()]);
        rows.extend(sentences.map(|sentence| [String::new(), String::new(), sentence]));
    }
    let end = if dry_run {
        "nothing was changed: this was a dry run"
    } else {
        "adopted; the instances listed above are held until their problem is fixed"
    };
    format!("{presence}\n{}{end}", table(&rows))
}

fn price_rows(differences: &[PriceDifference]) -> Vec<[String; 3]> {
    let sentence = |difference: &PriceDifference| {
        let PriceDifference { instance, label, hourly_price, panel_hourly_price, .. } = difference;
        format!(
            "instance {label} ({instance}): {hourly_price} an hour, the panel charges {panel_hourly_price}"
        )
    };
    let more = differences.len().saturating_sub(PRICES_PRINTED);
    let more = (more > 0).then(|| format!("and {more} more: see --json"));
    let sentences = differences.iter().take(PRICES_PRINTED).map(sentence).chain(more);
    let heads = std::iter::once(("price_differs".to_owned(), differences.len().to_string()));
    heads
        .chain(std::iter::repeat_with(Default::default))
        .zip(sentences)
        .map(|((kind, count), sentence)| [kind, count, sentence])
        .collect()
}
