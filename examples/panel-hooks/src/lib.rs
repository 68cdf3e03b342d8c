//! A receiver of the orders to suspend and to resume: verifies each event before it parses it, keeps the greatest order number of every
//! organization in a file, and answers 200 only once the instances are in the wanted state.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde::Deserialize;
use standardwebhooks::Webhook;

/// What a receiver does with instances: in a panel, a call of the provider, and a column that its start button checks.
pub trait Provider: Send + Sync + 'static {
    /// Switches an instance off, so that its customer cannot start it, or lets it run.
    ///
    /// # Errors
    /// The provider does not answer. The event is then sent again.
    fn set_running(&self, instance: &str, runs: bool) -> io::Result<()>;

    /// All instances of an organization, for an order that does not list them because there are more than 1,000: from the table of the
    /// panel, or with [`read_instances`].
    ///
    /// # Errors
    /// They cannot be read. The event is then sent again.
    fn instances(&self, organization: &str) -> io::Result<Vec<String>>;
}

/// Reads the instances of an organization from the HTTP interface of the daemon, such as `http://127.0.0.1:9464`, page by page.
///
/// # Errors
/// The daemon does not answer, or has no such organization.
pub fn read_instances(daemon: &str, organization: &str) -> io::Result<Vec<String>> {
    let agent = ureq::Agent::new_with_config(
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10))).build(),
    );
    let mut found = Vec::new();
    // All ids are greater.
    let mut after = "00000000-0000-0000-0000-000000000000".to_owned();
    loop {
        let url = format!("{daemon}/api/standings/{organization}/instances?after={after}");
        let page = agent.get(&url).call().and_then(|mut answer| answer.body_mut().read_to_string());
        let page: Vec<Instance> = serde_json::from_str(&page.map_err(io::Error::other)?)?;
        let Some(last) = page.last() else { return Ok(found) };
        after.clone_from(&last.id);
        found.extend(page.into_iter().map(|instance| instance.provider_instance_id));
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    data: serde_json::Value,
}

#[derive(Deserialize)]
struct Order {
    organization: String,
    #[serde(rename = "order")]
    number: i64,
    instances: Option<Vec<Instance>>,
}

#[derive(Deserialize)]
struct Instance {
    id: String,
    provider_instance_id: String,
}

/// A receiver of events.
pub struct Receiver<P> {
    verifier: Webhook,
    provider: P,
    /// The file with the greatest order that is carried out, for every organization.
    file: PathBuf,
    orders: Mutex<BTreeMap<String, i64>>,
}

impl<P: Provider> Receiver<P> {
    /// A receiver with the secret that jobs.toml refers to, and a file that is created with the first order.
    ///
    /// # Errors
    /// The secret is not base64, or the file cannot be read.
    pub fn new(secret: &str, provider: P, file: PathBuf) -> io::Result<Self> {
        let verifier = Webhook::new(secret.trim()).map_err(io::Error::other)?;
        let orders = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { verifier, provider, file, orders: Mutex::new(orders) })
    }

    /// The route of the endpoint.
    pub fn routes(self) -> Router {
        Router::new().route("/hooks/billing", post(receive::<P>)).with_state(Arc::new(self))
    }

    /// Carries out an event, and returns the answer.
    pub fn handle(&self, headers: &HeaderMap, body: &[u8]) -> StatusCode {
        if self.verifier.verify(body, headers).is_err() {
            return StatusCode::UNAUTHORIZED;
        }
        let Ok(Event { kind, data }) = serde_json::from_slice(body) else { return StatusCode::BAD_REQUEST };
        let runs = match kind.as_str() {
            "billing.service.suspend" => false,
            "billing.service.resume" => true,
            // Such as a test event. A receiver accepts what it does not know.
            _ => return StatusCode::NO_CONTENT,
        };
        let Ok(order) = serde_json::from_value::<Order>(data) else { return StatusCode::BAD_REQUEST };
        self.carry_out(&order, runs).map_or(StatusCode::SERVICE_UNAVAILABLE, |()| StatusCode::OK)
    }

    fn carry_out(&self, order: &Order, runs: bool) -> io::Result<()> {
        // One order after the other: a newer one waits until an older one is carried out.
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if orders.get(&order.organization).is_some_and(|known| *known >= order.number) {
            return Ok(());
        }
        let instances = match &order.instances {
            Some(listed) => listed.iter().map(|instance| instance.provider_instance_id.clone()).collect(),
            None => self.provider.instances(&order.organization)?,
        };
        for instance in instances {
            self.provider.set_running(&instance, runs)?;
        }
        let mut next = orders.clone();
        next.insert(order.organization.clone(), order.number);
        let new = self.file.with_extension("new");
        fs::write(&new, serde_json::to_vec(&next)?)?;
        fs::rename(new, &self.file)?;
        *orders = next;
        Ok(())
    }
}

async fn receive<P: Provider>(
    State(receiver): State<Arc<Receiver<P>>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    // The provider is called without blocking other requests.
    let answer = tokio::task::spawn_blocking(move || receiver.handle(&headers, &body));
    answer.await.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
