//! Actions: each in the name of a person, with a reason, and with one entry in the audit log in the transaction that makes the change.
//! A form has the id of its request, so the same form changes something once.

use std::collections::HashMap;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use billing_jobs::{
    billing::{Excess, Scope, approve_catch_up_once, spike_guard},
    currency::Currency,
    money::Money,
    prepaid::PolicyMode,
};
use billing_scheduler::{ControlAction, ControlReceipt, ControlRequest, FencingToken, RunFilter, RunStatus};
use billing_store::{StatementLimit, audit_log::is_recorded, begin_read, read_runs, submit_request};
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use sea_orm::{DatabaseConnection, DbErr};
use serde_json::json;
use uuid::Uuid;

use super::{
    answer::Format,
    layout, nearest,
    page::{approvals, event, job},
    problem::Problem,
    visit::{Visit, parse_time},
};
use crate::{
    format::instant,
    prepaid::{Author, DeliveryChange, PolicyEdit, PolicyError, change_deliveries, set_policy},
};

/// The longest reason, in characters.
const MAX_REASON: usize = 500;
const REPEATED: &str = "this form was already sent";

/// How the markup of the field with the id of a form begins.
pub(super) const REQUEST_FIELD: &str = "name=\"request\" value=\"";

/// The fields of a form.
pub(super) struct Fields(HashMap<String, String>);

/// What became of an action.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Done {
    Accepted,
    /// Nothing had to be done, for this reason.
    Unchanged(String),
}

/// A form of an action. The person fills the reason and the visible fields.
pub(super) struct Form<'a> {
    /// The path below that of the console.
    pub(super) path: &'a str,
    pub(super) label: &'a str,
    pub(super) hidden: &'a [(&'a str, &'a str)],
    /// Each with the value that it has first.
    pub(super) visible: &'a [(Field, &'a str)],
    /// What the action does, in a sentence.
    pub(super) hint: &'a str,
}

/// A field that the person fills.
pub(super) struct Field {
    pub(super) name: &'static str,
    label: &'static str,
    input: Input,
}

/// What a person enters in a field.
enum Input {
    Required,
    Optional,
    /// One of these words.
    OneOf(fn() -> Vec<&'static str>),
}

impl Field {
    pub(super) const AMOUNT: Self = Self::new("amount", "Type the amount", Input::Required);
    pub(super) const MODE: Self = Self::new("mode", "Mode", Input::OneOf(modes));
    pub(super) const CREDIT_LIMIT: Self = Self::new("credit_limit", "Credit limit", Input::Required);
    pub(super) const NEVER_SUSPEND_UNTIL: Self = Self::new(
        "never_suspend_until",
        "Not suspended before (UTC, such as 2026-11-22T15:00:00Z)",
        Input::Optional,
    );
    pub(super) const CONTACT: Self = Self::new("contact", "Address for mails", Input::Optional);
    const REASON: Self = Self::new("reason", "Reason", Input::Required);
    const ALL: [Self; 6] = [
        Self::AMOUNT,
        Self::MODE,
        Self::CREDIT_LIMIT,
        Self::NEVER_SUSPEND_UNTIL,
        Self::CONTACT,
        Self::REASON,
    ];

    const fn new(name: &'static str, label: &'static str, input: Input) -> Self {
        Self { name, label, input }
    }

    fn shown(&self, value: &str) -> Markup {
        let is_required = matches!(self.input, Input::Required);
        html! {
            label {
                (self.label) " "
                @if let Input::OneOf(words) = self.input {
                    select name=(self.name) { @for word in words() { option selected[word == value] { (word) } } }
                } @else {
                    input name=(self.name) value=(value) required[is_required] maxlength=(MAX_REASON) autocomplete="off";
                }
            }
        }
    }
}

fn modes() -> Vec<&'static str> {
    PolicyMode::ALL.map(PolicyMode::as_str).to_vec()
}

/// The form, closed until the person opens it.
pub(super) fn form(visit: &Visit, form: &Form<'_>) -> Markup {
    html! {
        details.action {
            summary { (form.label) }
            form.stacked method="post" action=(visit.link(form.path)) {
                p.hint { (form.hint) }
                input type="hidden" name="request" value=(Uuid::now_v7());
                @for (name, value) in form.hidden { input type="hidden" name=(name) value=(value); }
                @for (field, value) in form.visible { (field.shown(value)) }
                (Field::REASON.shown(""))
                button { (form.label) }
            }
        }
    }
}

impl Fields {
    pub(super) fn parse(form: &str) -> Self {
        let pairs = url::form_urlencoded::parse(form.as_bytes());
        Self(pairs.map(|(key, value)| (key.into_owned(), value.into_owned())).collect())
    }

    fn get(&self, key: &str) -> Result<&str, Problem> {
        let value = self.0.get(key).map(|value| value.trim());
        if value.is_some_and(|value| value.contains('\0')) {
            return Err(Problem::Invalid(format!("`{key}` contains a zero byte")));
        }
        value.filter(|value| !value.is_empty()).ok_or_else(|| Problem::Invalid(format!("`{key}` is missing")))
    }

    /// The value of a field that a form may lack, and which may be empty.
    #[expect(clippy::option_option, reason = "a field that is missing differs from one that is empty")]
    fn sent<T>(
        &self,
        key: &str,
        parse: impl FnOnce() -> Result<T, Problem>,
    ) -> Result<Option<Option<T>>, Problem> {
        match self.0.get(key).map(|value| value.trim()) {
            None => Ok(None),
            Some("") => Ok(Some(None)),
            Some(_) => Ok(Some(Some(parse()?))),
        }
    }

    fn parsed<T: std::str::FromStr>(&self, key: &str) -> Result<T, Problem> {
        let value = self.get(key)?;
        value.parse().map_err(|_| Problem::Invalid(format!("`{key}` cannot be `{value}`")))
    }

    fn time(&self, key: &str) -> Result<DateTime<Utc>, Problem> {
        let invalid = || Problem::Invalid(format!("`{key}` is a time such as 2026-11-22T15:00:00Z"));
        parse_time(self.get(key)?).ok_or_else(invalid)
    }

    fn mode(&self) -> Result<PolicyMode, Problem> {
        let mode = self.get("mode")?;
        let mode = PolicyMode::ALL.into_iter().find(|known| known.as_str() == mode);
        mode.ok_or_else(|| Problem::Invalid("`mode` is prepaid, postpaid or exempt".to_owned()))
    }

    fn request(&self) -> Result<Uuid, Problem> {
        self.parsed("request")
    }

    fn reason(&self) -> Result<&str, Problem> {
        let reason = self.get("reason")?;
        if reason.chars().count() > MAX_REASON {
            return Err(Problem::Invalid(format!("the reason is longer than {MAX_REASON} characters")));
        }
        if reason.contains(char::is_control) {
            return Err(Problem::Invalid("the reason contains a control character".to_owned()));
        }
        Ok(reason)
    }

    /// The form again, filled, with what is wrong with it.
    pub(super) fn again(&self, visit: &Visit, path: &str, message: &str) -> Markup {
        let is_shown = |field: &&Field| field.name == Field::REASON.name || self.0.contains_key(field.name);
        let sent = |field: &Field| field.shown(self.0.get(field.name).map_or("", String::as_str));
        let is_hidden = |(key, _): &(&String, &String)| Field::ALL.iter().all(|field| field.name != *key);
        let mut hidden: Vec<_> = self.0.iter().filter(is_hidden).collect();
        hidden.sort_unstable();
        html! {
            p.notice.bad role="alert" { (layout::sentence(message)) }
            form.stacked method="post" action=(visit.link(path.trim_start_matches('/'))) {
                @for (name, value) in hidden { input type="hidden" name=(name) value=(value); }
                @for field in Field::ALL.iter().filter(is_shown) { (sent(field)) }
                button { "Send again" }
            }
        }
    }
}

/// Answers with what became of the action of `path`, whose page is shown next.
pub(super) fn answer(visit: &Visit, path: &str, format: Format, done: &Done, fields: &Fields) -> Response {
    let page = path.rsplit_once('/').map_or("", |(page, _)| page).trim_start_matches('/');
    match (format, done) {
        (Format::Json, Done::Accepted) => {
            Json(json!({ "accepted": true, "request": fields.0.get("request") })).into_response()
        }
        (Format::Json, Done::Unchanged(why)) => {
            Json(json!({ "accepted": false, "unchanged": format!("nothing had to be done: {why}") }))
                .into_response()
        }
        (Format::Html, Done::Accepted) => super::answer::see_other(&visit.link(page)),
        (Format::Html, Done::Unchanged(why)) => {
            let content = html! {
                h1 { "Nothing had to be done" }
                p { (layout::sentence(why)) }
                p { a href=(visit.link(page)) { "Back to the page" } }
            };
            let page = layout::document(visit, "Nothing had to be done", &content);
            (StatusCode::OK, super::answer::html(&page)).into_response()
        }
    }
}

fn writing(visit: &Visit) -> &DatabaseConnection {
    &visit.console.shared.database().db
}

async fn request(visit: &Visit, fields: &Fields, action: ControlAction) -> Result<Done, Problem> {
    let job = job::known(visit)?;
    let failed = |error: DbErr| Problem::database("store the request", &error);
    let request = ControlRequest {
        id: fields.request()?,
        job: job.job.clone(),
        action,
        by: visit.person.name.clone(),
        reason: Some(fields.reason()?.to_owned()),
        at: billing_store::read_time(writing(visit)).await.map_err(failed)?,
    };
    Ok(match submit_request(writing(visit), &request).await.map_err(failed)? {
        ControlReceipt::Accepted => Done::Accepted,
        ControlReceipt::Unchanged(why) => Done::Unchanged(why),
    })
}

/// Whether the form was sent before: what it shows may have changed since then.
async fn repeated(visit: &Visit, fields: &Fields) -> Result<Option<Done>, Problem> {
    let request = fields.request()?;
    let read = async {
        let txn = begin_read(writing(visit), StatementLimit::Call).await?;
        let recorded = is_recorded(&txn, request).await?;
        txn.commit().await?;
        Ok(recorded)
    };
    let recorded: Result<_, DbErr> = read.await;
    let recorded = recorded.map_err(|error| Problem::database("read the audit log", &error))?;
    Ok(recorded.then(|| Done::Unchanged(REPEATED.to_owned())))
}

pub(super) async fn pause(visit: &Visit, fields: &Fields) -> Result<Done, Problem> {
    request(visit, fields, ControlAction::Pause).await
}

pub(super) async fn resume(visit: &Visit, fields: &Fields) -> Result<Done, Problem> {
    request(visit, fields, ControlAction::Resume).await
}

pub(super) async fn trigger(visit: &Visit, fields: &Fields) -> Result<Done, Problem> {
    if let Some(pause) = &job::known(visit)?.paused {
        return Err(Problem::Conflict(format!("the job is {pause}: resume it first")));
    }
    request(visit, fields, ControlAction::RunNow).await
}

pub(super) async fn cancel(visit: &Visit, fields: &Fields) -> Result<Done, Problem> {
    let shown: i64 = fields.parsed("fencing_token")?;
    if let Some(done) = repeated(visit, fields).await? {
        return Ok(done);
    }
    // The status may be a few seconds old, so the store compares as well.
    let action = ControlAction::Cancel { fencing_token: FencingToken(shown) };
    match request(visit, fields, action).await? {
        Done::Unchanged(why) if why == billing_store::OTHER_CLAIM => {
            Err(Problem::Conflict(format!("claim {shown} has ended: {why}")))
        }
        done => Ok(done),
    }
}

pub(super) async fn replay(visit: &Visit, fields: &Fields) -> Result<Done, Problem> {
    let scheduled_at = fields.time("scheduled_at")?;
    if let Some(done) = repeated(visit, fields).await? {
        return Ok(done);
    }
    let job = Some(job::known(visit)?.job.clone());
    let filter = RunFilter { job, scheduled_at: Some(scheduled_at), limit: 100, ..RunFilter::default() };
    let runs = read_runs(visit.db(), &filter).await;
    let runs = runs.map_err(|error| Problem::database("read the history", &error))?;
    let at = instant(scheduled_at);
    if runs.is_empty() {
        return Err(Problem::Invalid(format!("{at} is not in the history of the job")));
    }
    let is_done = |run: &&billing_scheduler::RunRow| {
        run.run.status == RunStatus::Done && run.run.scheduled_at == scheduled_at
    };
    if let Some(done) = runs.iter().find(is_done) {
        return Err(Problem::Conflict(format!("{at} is done, by run {}", done.run.id)));
    }
    request(visit, fields, ControlAction::Replay { scheduled_at }).await
}

/// Approves exactly the amount that the form shows and the person has typed.
pub(super) async fn approve_spike(visit: &Visit, fields: &Fields) -> Result<Done, Problem> {
    let (request, reason) = (fields.request()?, fields.reason()?);
    let (announced, currency): (i64, Currency) = (fields.parsed("announced")?, fields.parsed("currency")?);
    let amount: Money = fields.parsed("amount")?;
    if let Some(done) = repeated(visit, fields).await? {
        return Ok(done);
    }
    let failed = |error: DbErr| Problem::database("approve the announced amount", &error);
    let pending = spike_guard::pending_spike(writing(visit)).await.map_err(failed)?;
    let is_shown = |excess: &&Excess| excess.currency == currency;
    let excess = pending
        .filter(|pending| pending.id == announced)
        .and_then(|pending| pending.excesses.iter().find(is_shown).copied());
    let Some(excess) = excess else {
        return Err(Problem::Conflict("no run waits for this approval any more".to_owned()));
    };
    if excess.due.amount != amount {
        return Err(Problem::Conflict(format!(
            "{} {currency} waits for an approval, not {amount}",
            excess.due.amount
        )));
    }
    let by = &visit.person.name;
    let recorded =
        spike_guard::approve_once(writing(visit), announced, excess, by, Some(reason), request).await;
    recorded.map(once).map_err(failed)
}

/// Approves the due hours of one organization, if they are those that the form shows.
pub(super) async fn approve_catch_up(visit: &Visit, fields: &Fields) -> Result<Done, Problem> {
    let (request, reason) = (fields.request()?, fields.reason()?);
    let organization = fields.parsed::<Uuid>("organization")?.to_string();
    let shown: (i64, i64) = (fields.parsed("instances")?, fields.parsed("hours")?);
    if let Some(done) = repeated(visit, fields).await? {
        return Ok(done);
    }
    let failed = |error: DbErr| Problem::database("approve the due hours", &error);
    let waiting = approvals::catch_up(writing(visit), Some(&organization)).await.map_err(failed)?.pop();
    if waiting.map(|waiting| (waiting.instances, waiting.hours)) != Some(shown) {
        return Err(Problem::Conflict("other hours wait for an approval now".to_owned()));
    }
    let scope = Scope { organizations: vec![organization], ..Scope::default() };
    let by = &visit.person.name;
    let recorded = approve_catch_up_once(writing(visit), &scope, by, Some(reason), request).await;
    Ok(once(recorded.map_err(failed)?.is_some()))
}

/// What an action did, by whether its entry is new.
fn once(recorded: bool) -> Done {
    if recorded { Done::Accepted } else { Done::Unchanged(REPEATED.to_owned()) }
}

/// Sets what applies to one organization, with the login that may write it. What the form does not have stays.
pub(super) async fn policy(visit: &Visit, fields: &Fields) -> Result<Done, Problem> {
    let author =
        Author { name: &visit.person.name, reason: Some(fields.reason()?), request: Some(fields.request()?) };
    let edit = PolicyEdit {
        mode: fields.0.contains_key("mode").then(|| fields.mode()).transpose()?,
        credit_limit: fields
            .0
            .contains_key("credit_limit")
            .then(|| fields.get("credit_limit"))
            .transpose()?,
        never_suspend_until: fields.sent("never_suspend_until", || fields.time("never_suspend_until"))?,
        contact: fields.sent("contact", || fields.get("contact"))?,
        changed_at: fields.sent("changed_at", || fields.time("changed_at"))?,
    };
    if edit.is_empty() {
        return Err(Problem::Invalid("the form has nothing to set".to_owned()));
    }
    let organization = nearest::organization(visit, visit.param("organization")).await?;
    if let Some(done) = repeated(visit, fields).await? {
        return Ok(done);
    }
    let adjusting = visit.console.adjusting().await?;
    let set = set_policy(&adjusting, &organization, edit, author).await;
    // The daemon's own pool stays open.
    if visit.console.settings.adjust_database_url.is_some() {
        let _ = adjusting.close().await;
    }
    match set {
        Ok(recorded) => Ok(once(recorded)),
        Err(PolicyError::Invalid(message)) => Err(Problem::Invalid(message)),
        Err(PolicyError::Conflict) => match repeated(visit, fields).await? {
            Some(done) => Ok(done),
            None => Err(Problem::Conflict("another policy was set meanwhile".to_owned())),
        },
        Err(PolicyError::Database(error)) => Err(Problem::database("set the policy", &error)),
    }
}

async fn change_event(visit: &Visit, fields: &Fields, change: DeliveryChange<'_>) -> Result<Done, Problem> {
    let author =
        Author { name: &visit.person.name, reason: Some(fields.reason()?), request: Some(fields.request()?) };
    let event = event::known(visit).await?;
    let changed = change_deliveries(writing(visit), &event, change, author).await;
    let changed = changed.map_err(|error| Problem::database("change the deliveries", &error))?;
    Ok(once(changed.is_some()))
}

pub(super) async fn redeliver(visit: &Visit, fields: &Fields) -> Result<Done, Problem> {
    change_event(visit, fields, DeliveryChange::Redeliver(None)).await
}

pub(super) async fn cancel_delivery(visit: &Visit, fields: &Fields) -> Result<Done, Problem> {
    change_event(visit, fields, DeliveryChange::Cancel).await
}
