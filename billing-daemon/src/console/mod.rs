//! The console: pages for operators that show what is wrong and why, and the actions that fix it. Each page is read into one type, which
//! is shown as HTML and served as JSON.

mod action;
mod answer;
mod assets;
mod auth;
mod chart;
mod csrf;
mod layout;
mod nearest;
mod openapi;
mod page;
mod preview;
mod problem;
mod routes;
mod visit;

use std::{path::Path, sync::Arc};

use billing_kinds::{Secret, input_file::read_text};
use billing_scheduler::{Clock, SystemClock};
use billing_store::{Database, DatabaseUrl, Pool};
use sea_orm::{DatabaseConnection, DbBackend};
use tracing::warn;

use crate::{
    config::{console::ConsoleSettings, secret_file::world_readable},
    exit::{Exit, Failure},
    host::platform,
    http::{AppState, Mounted},
    panel_database::PanelDatabase,
};
use auth::{Authentication, SessionKey};
pub(crate) use auth::{Right, TokenLine, hex};
use problem::Problem;
pub use routes::{actions, pages};

/// A shorter secret could be guessed.
const MIN_SECRET_LENGTH: usize = 16;

/// What the pages of one listener share.
struct Console {
    shared: Arc<AppState>,
    /// For pages: its own few connections, so that no page takes one that billing needs.
    reading: PanelDatabase,
    database: Database,
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
    let secret = settings.proxy.as_ref().map(|proxy| secret(&proxy.secret, "secret of the proxy"));
    let secret = secret.transpose().map_err(invalid)?;
    let key = settings.session_key.as_ref().map(|key| self::secret(key, "session key"));
    let key = key.transpose().map_err(invalid)?.map_or_else(SessionKey::random, SessionKey::from);
    let reading =
        PanelDatabase { db: database.reading().connect_with_retry(Pool::Pages).await?, ..opened.clone() };
    let authentication = Authentication::new(settings.clone(), secret, key, platform::hostname());
    let settings = settings.clone();
    let path = settings.path.clone();
    let database = database.clone();
    let console =
        Console { shared, reading, database, settings, authentication, clock: Arc::new(SystemClock) };
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

fn secret(secret: &Secret, name: &str) -> Result<String, String> {
    let secret = secret.read().map_err(|error| error.to_string())?;
    if secret.len() < MIN_SECRET_LENGTH {
        return Err(format!("the {name} must have at least {MIN_SECRET_LENGTH} characters"));
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

    /// Whether what applies to one customer can be written: a file of SQLite has no logins.
    fn can_adjust(&self) -> bool {
        self.settings.adjust_database_url.is_some()
            || self.reading.db.get_database_backend() == DbBackend::Sqlite
    }

    /// Connects with the login that may write what applies to one customer.
    async fn adjusting(&self) -> Result<DatabaseConnection, Problem> {
        let Some(secret) = &self.settings.adjust_database_url else {
            if self.can_adjust() {
                return Ok(self.shared.database().db.clone());
            }
            let hint = "`adjust-database-url` of [http.console] is not set: use `billing-daemon policy set`";
            return Err(Problem::Refused(hint));
        };
        let unusable = |error: String| {
            warn!("cannot use `adjust-database-url` of [http.console]: {error}");
            Problem::Unavailable
        };
        let url = secret.read().map_err(|error| unusable(error.to_string()))?;
        let url: DatabaseUrl = url.trim().parse().map_err(|error| unusable(format!("{error}")))?;
        let database = self.database.with_url(url.existing());
        database.connect(Pool::Single).await.map_err(|error| unusable(error.to_string()))
    }

    /// The time in seconds since 1970.
    fn now(&self) -> i64 {
        self.clock.now().timestamp()
    }
}
