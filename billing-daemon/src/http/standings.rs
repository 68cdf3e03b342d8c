//! `/api/standings`: the wanted state of organizations, for a receiver that compares it with its own.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use billing_jobs::{
    PrepaidParams,
    prepaid::{Desired, Instance, InstanceList, Prepaid, Wanted},
};
use chrono::{DateTime, Utc};
use sea_orm::DbErr;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, IntoResponses, ToSchema};
use uuid::Uuid;

use super::{AppState, handlers::Unavailable};
use crate::exit::Failure;

/// The number of organizations in one answer, unless the request has another one.
const PAGE: u32 = 100;
/// The number of instances in one answer.
const INSTANCES_PAGE: usize = 1_000;

/// Which organizations a request selects, and how many of them.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct StandingsQuery {
    /// Only the organization with this id.
    organization: Option<Uuid>,
    /// Only organizations with this wanted state: `running` or `suspended`.
    #[param(inline)]
    desired: Option<DesiredParam>,
    /// The last organization of the previous page; those after it follow.
    after: Option<Uuid>,
    /// The number of organizations: 100 by default, at most 1,000.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 4_294_967_295_i64)]
    limit: Option<u32>,
}

/// The wanted states that a request can select.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum DesiredParam {
    Running,
    Suspended,
}

/// What the prepaid policy wants of an organization.
#[derive(Serialize, ToSchema)]
pub(super) struct StandingEntry {
    /// The id of the organization.
    organization: String,
    /// `ok`, `low`, `exhausted`, `suspended` or `unknown`.
    state: String,
    /// `running` or `suspended`.
    desired: String,
    /// The number of the newest order; null if there was none.
    order: Option<i64>,
    /// The number of the last order that every needed endpoint has carried out.
    acked_order: Option<i64>,
    /// When the state began; null for an organization that was never low.
    since: Option<DateTime<Utc>>,
    /// The present instances; null if there are more than 1,000.
    instances: Option<Vec<InstanceEntry>>,
    /// Whether the instances must be read in pages, from `/api/standings/{organization}/instances`.
    more: bool,
}

/// An instance of an organization.
#[derive(Serialize, ToSchema)]
pub(super) struct InstanceEntry {
    /// The id of the instance in the panel.
    id: String,
    /// Its id at the provider; empty if it has none.
    provider_instance_id: String,
    /// Its name, as the customer chose it.
    label: String,
}

impl From<Instance> for InstanceEntry {
    fn from(Instance { id, provider_instance_id, label }: Instance) -> Self {
        Self { id, provider_instance_id, label }
    }
}

impl From<Wanted> for StandingEntry {
    fn from(wanted: Wanted) -> Self {
        let Wanted { organization, state, desired, order, acked_order, since, instances } = wanted;
        let since = since.and_then(DateTime::from_timestamp_micros);
        let InstanceList { instances, more } = instances;
        let instances = instances.map(|list| list.into_iter().map(InstanceEntry::from).collect());
        Self { organization, state, desired, order, acked_order, since, instances, more }
    }
}

/// Why a request is not answered.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only what the derive adds to the document is of interest")]
enum Refusal {
    /// A parameter is invalid
    #[response(status = 400)]
    Invalid(String),
    /// No organization has this id
    #[response(status = 404)]
    Unknown(String),
    /// The database failed
    #[response(status = 503)]
    Unavailable(String),
}

/// The wanted state of organizations, in the order of their ids. An organization that was never low is listed only if it is requested.
#[utoipa::path(
    get,
    path = "/api/standings",
    params(StandingsQuery),
    responses((status = 200, body = Vec<StandingEntry>), Refusal)
)]
pub(super) async fn standings(
    State(shared): State<Arc<AppState>>,
    Query(query): Query<StandingsQuery>,
) -> Result<Response, Unavailable> {
    let prepaid = prepaid(&shared);
    let found = if let Some(organization) = query.organization {
        let Some(found) = prepaid.wanted_of(&organization.to_string()).await.map_err(failed)? else {
            return Ok(unknown());
        };
        vec![found]
    } else {
        let desired = query.desired.map(|desired| match desired {
            DesiredParam::Running => Desired::Running,
            DesiredParam::Suspended => Desired::Suspended,
        });
        let after = query.after.map(|after| after.to_string()).unwrap_or_default();
        let limit = query.limit.unwrap_or(PAGE).clamp(1, 1_000);
        prepaid.wanted(desired, &after, limit).await.map_err(failed)?
    };
    let entries: Vec<StandingEntry> = found.into_iter().map(StandingEntry::from).collect();
    Ok(Json(entries).into_response())
}

/// Which instances of an organization a request selects.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct InstancesQuery {
    /// The last instance of the previous page; those after it follow.
    after: Option<Uuid>,
    /// The number of instances: 1,000 by default and at most.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 4_294_967_295_i64)]
    limit: Option<u32>,
}

/// The present instances of an organization, in the order of their ids: all that an order for it concerns. A page with fewer
/// instances than requested is the last one.
#[utoipa::path(
    get,
    path = "/api/standings/{organization}/instances",
    params(("organization" = Uuid, Path, description = "The id of the organization."), InstancesQuery),
    responses((status = 200, body = Vec<InstanceEntry>), Refusal)
)]
pub(super) async fn instances(
    State(shared): State<Arc<AppState>>,
    Path(organization): Path<Uuid>,
    Query(query): Query<InstancesQuery>,
) -> Result<Response, Unavailable> {
    let after = query.after.map(|after| after.to_string()).unwrap_or_default();
    let limit = query.limit.map_or(INSTANCES_PAGE, |limit| usize::try_from(limit).unwrap_or(INSTANCES_PAGE));
    let limit = limit.clamp(1, INSTANCES_PAGE);
    let found = prepaid(&shared).instances_of(&organization.to_string(), &after, limit).await;
    let Some(found) = found.map_err(failed)? else { return Ok(unknown()) };
    let entries: Vec<InstanceEntry> = found.into_iter().map(InstanceEntry::from).collect();
    Ok(Json(entries).into_response())
}

fn prepaid(shared: &AppState) -> Prepaid {
    // The parameters of the policy decide nothing here.
    let (opened, params) = (&shared.opened, PrepaidParams::default());
    Prepaid::new(opened.db.clone(), opened.panel, &params, Duration::from_hours(1))
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` passes the error by value")]
fn failed(error: DbErr) -> Failure {
    Failure::database("read the standings", &error)
}

fn unknown() -> Response {
    (StatusCode::NOT_FOUND, "no such organization\n").into_response()
}
