//! The console: pages for operators that show what is wrong and why, and the actions that fix it. Each page is read into one type, which
//! is shown as HTML and served as JSON.

mod action;
mod answer;
mod assets;
mod auth;
mod chart;
mod csrf;
mod layout;
mod openapi;
mod page;
mod problem;
mod routes;
mod visit;

use std::{path::Path, sync::Arc};

use billing_kinds::input_file::read_text;
use billing_scheduler::{Clock, SystemClock};
use billing_store::{Database, Pool};
use tracing::warn;

use crate::{
    config::{
        console::{ConsoleSettings, ProxySettings},
        secret_file::world_readable,
    },
    exit::{Exit, Failure},
    host::platform,
    http::{AppState, Mounted},
    panel_database::PanelDatabase,
};
use auth::Authentication;
pub(crate) use auth::{Right, TokenLine, hex};
pub use routes::actions;

/// A shorter secret of the proxy could be guessed.
const MIN_SECRET_LENGTH: usize = 16;

/// What the pages of one listener share.
struct Console {
    shared: Arc<AppState>,
    /// For pages: its own few connections, so that no page takes one that billing needs.
    reading: PanelDatabase,
    settings: ConsoleSettings,
    authentication: Authentication,
    clock: Arc<dyn Clock>,
}

/// Prepares the console of the listener that serves `shared`.
///
/// # Errors
/// A secret cannot be read or is not safe, or the database cannot be opened.
pub(crate) async fn mount(
    settings: &ConsoleSettings,
    database: &Database,
    opened: &PanelDatabase,
    shared: Arc<AppState>,
) -> Result<Mounted, Failure> {
    let invalid = |error: String| {
        Failure::new(Exit::Configuration, format!("cannot use [http.console] in jobs.toml: {error}"))
    };
    if let Some(file) = &settings.tokens_file {
        read_tokens(file).map_err(invalid)?;
    }
    let secret = settings.proxy.as_ref().map(proxy_secret).transpose().map_err(invalid)?;
    let reading =
        PanelDatabase { db: database.reading().connect_with_retry(Pool::Pages).await?, ..opened.clone() };
    let authentication = Authentication::new(settings.clone(), secret, platform::hostname());
    let settings = settings.clone();
    let path = settings.path.clone();
    let console = Console { shared, reading, settings, authentication, clock: Arc::new(SystemClock) };
    Ok(Mounted { path, router: answer::router(&Arc::new(console)), documented: openapi::paths() })
}

/// Reads the file with the tokens, which no other user may read.
fn read_tokens(file: &Path) -> Result<Vec<TokenLine>, String> {
    if let Some(exposed) = world_readable(file) {
        return Err(exposed);
    }
    let text = read_text(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    TokenLine::parse_all(&text).map_err(|error| format!("{}: {error}", file.display()))
}

fn proxy_secret(proxy: &ProxySettings) -> Result<String, String> {
    let secret = proxy.secret.read().map_err(|error| error.to_string())?;
    if secret.len() < MIN_SECRET_LENGTH {
        return Err(format!("the secret of the proxy must have at least {MIN_SECRET_LENGTH} characters"));
    }
    Ok(secret)
}

impl Console {
    /// The tokens that are valid now; none while their file cannot be used, which is logged. The file is read for each request, so that
    /// a removed line ends what it allowed.
    async fn tokens(&self) -> Vec<TokenLine> {
        let Some(file) = self.settings.tokens_file.clone() else { return Vec::new() };
        let read = tokio::task::spawn_blocking(move || read_tokens(&file)).await;
        match read.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(tokens) => tokens,
            Err(error) => {
                warn!("no one can sign in to the console: {error}");
                Vec::new()
            }
        }
    }

    /// The time in seconds since 1970.
    fn now(&self) -> i64 {
        self.clock.now().timestamp()
    }
}
