//! Answers requests: whether they are from a page of this origin, who sends them, what this person may do, and then the page.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, Path},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use billing_store::{audit_log::fingerprint, reading_within};
use maud::{Markup, html};

use super::{
    Console,
    action::{self, Fields},
    assets,
    auth::{AuthError, Principal, line_of},
    csrf, layout,
    problem::Problem,
    routes::{ACTIONS, ActionRoute, PAGES, PageRoute},
    visit::Visit,
};
use crate::{
    http::{AppState, PeerIdentity},
    status::Status,
    telemetry::metrics::console_refused,
};

/// How long a wrong credential is answered later, in addition to the limit of requests.
const WRONG_CREDENTIAL_DELAY: Duration = Duration::from_secs(1);

/// The most that one statement of a page may take on PostgreSQL.
const PAGE_STATEMENT: Duration = Duration::from_secs(2);

/// The most that a page waits for the status, which several statements read.
const STATUS_WITHIN: Duration = Duration::from_secs(4);

const SECURITY_HEADERS: [(&str, &str); 4] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'",
    ),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
];

/// The form in which a page is requested.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Html,
    Json,
}

type Routes = Router<Arc<AppState>>;

/// The routes of the console.
pub(super) fn router(console: &Arc<Console>) -> Routes {
    let path = console.settings.path.clone();
    let mut router = Router::new();
    for route in &PAGES {
        router = router.route(&format!("{path}{}", route.path), page(console, route, Format::Html));
        if let Some(api) = route.api {
            router = router.route(&format!("/api{api}"), page(console, route, Format::Json));
        }
    }
    for route in &ACTIONS {
        router = router.route(&format!("{path}{}", route.path), act(console, route));
    }
    let last = path.rsplit('/').next().unwrap_or_default().to_owned();
    router
        .route(&path, get(async move || see_other(&format!("{last}/"))))
        .route(
            &format!("{path}/assets/{{file}}"),
            get(async |Path(file): Path<String>| secured(assets::answer(&file))),
        )
        .route(&format!("{path}/sign-in"), sign_in(console))
        .route(&format!("{path}/sign-out"), sign_out(console))
}

fn page(console: &Arc<Console>, route: &'static PageRoute, format: Format) -> MethodRouter<Arc<AppState>> {
    let console = Arc::clone(console);
    get(
        async move |ConnectInfo(peer): ConnectInfo<PeerIdentity>,
                    Path(params): Path<HashMap<String, String>>,
                    headers: HeaderMap,
                    uri: Uri| {
            let request = Request { console, peer, headers, uri, format };
            secured(request.answer_page(route, params).await)
        },
    )
}

fn act(console: &Arc<Console>, route: &'static ActionRoute) -> MethodRouter<Arc<AppState>> {
    let console = Arc::clone(console);
    post(
        async move |ConnectInfo(peer): ConnectInfo<PeerIdentity>,
                    Path(params): Path<HashMap<String, String>>,
                    headers: HeaderMap,
                    uri: Uri,
                    body: String| {
            let wants_json =
                headers.get(header::ACCEPT).is_some_and(|kind| kind.as_bytes() == b"application/json");
            let format = if wants_json { Format::Json } else { Format::Html };
            let request = Request { console, peer, headers, uri, format };
            secured(match request.act(route, params, &body).await {
                Ok(response) => response,
                Err(problem) => request.answer_problem(&problem),
            })
        },
    )
}

/// Adds the headers that every answer of the console has.
pub(super) fn secured(mut response: Response) -> Response {
    for (name, value) in SECURITY_HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Answers with a redirection to a page, which may be behind a proxy: the URL is relative.
pub(super) fn see_other(to: &str) -> Response {
    let Ok(to) = HeaderValue::try_from(to) else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    (StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response()
}

/// Returns the relative URL of the first page, from a page at `path`.
pub(super) fn root(console_path: &str, path: &str) -> String {
    let below = path.strip_prefix(console_path).unwrap_or(path);
    match below.matches('/').count() {
        0 | 1 => "./".to_owned(),
        depth => "../".repeat(depth - 1),
    }
}

/// A request before its page is known to be shown.
pub(super) struct Request {
    pub(super) console: Arc<Console>,
    pub(super) peer: PeerIdentity,
    pub(super) headers: HeaderMap,
    pub(super) uri: Uri,
    pub(super) format: Format,
}

impl Request {
    pub(super) fn root(&self) -> String {
        root(&self.console.settings.path, self.uri.path())
    }

    /// Returns the person who sent the request.
    pub(super) async fn authenticate(&self) -> Result<Principal, Problem> {
        let tokens = self.console.tokens().await;
        let found =
            self.console.authentication.identify(&self.headers, self.peer, &tokens, self.console.now());
        match found {
            Ok(Some(person)) => Ok(person),
            Ok(None) => Err(Problem::Unauthorized("")),
            Err(AuthError::InvalidName) => {
                Err(Problem::BadRequest("the header of the proxy does not have one name".to_owned()))
            }
            Err(AuthError::Wrong) => {
                console_refused("credential");
                tokio::time::sleep(WRONG_CREDENTIAL_DELAY).await;
                Err(Problem::Unauthorized("the token is wrong"))
            }
        }
    }

    async fn answer_page(&self, route: &'static PageRoute, params: HashMap<String, String>) -> Response {
        match self.page(route, params).await {
            Ok(response) => response,
            Err(problem) => self.answer_problem(&problem),
        }
    }

    async fn page(&self, route: &PageRoute, params: HashMap<String, String>) -> Result<Response, Problem> {
        let visit = self.visit(route.keys, params).await?;
        if !visit.may(route.right) {
            return Err(Problem::Forbidden(route.right));
        }
        let page = reading_within(PAGE_STATEMENT, (route.read)(&visit)).await?;
        Ok(match self.format {
            Format::Json => match page.json() {
                Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            },
            Format::Html => {
                let content = layout::content(&visit, &page.title(), &page.body(&visit));
                let document = layout::document(&visit, &page.title(), &content);
                let tag = format!("\"{}\"", &fingerprint(&without_requests(&document.0))[..32]);
                let is_known = self
                    .headers
                    .get(header::IF_NONE_MATCH)
                    .is_some_and(|known| known.as_bytes() == tag.as_bytes());
                let tag = [(header::ETAG, tag)];
                if is_known {
                    (StatusCode::NOT_MODIFIED, tag).into_response()
                } else {
                    (tag, html(&document)).into_response()
                }
            }
        })
    }

    async fn act(
        &self,
        route: &ActionRoute,
        params: HashMap<String, String>,
        body: &str,
    ) -> Result<Response, Problem> {
        self.check_origin()?;
        let visit = self.visit(&[], params).await?;
        if !visit.person.rights.contains(&route.right) {
            return Err(Problem::Forbidden(route.right));
        }
        if !visit.may(route.right) {
            return Err(Problem::Refused("this console is read-only: `access` of [http.console] is `read`"));
        }
        let fields = Fields::parse(body);
        let path = self.uri.path().strip_prefix(&*self.console.settings.path).unwrap_or_default();
        match (route.act)(&visit, &fields).await {
            Ok(done) => {
                self.console.shared.expire_status().await;
                Ok(action::answer(&visit, path, self.format, &done, &fields))
            }
            Err(problem @ Problem::Invalid(_)) if self.format == Format::Html => {
                let content = fields.again(&visit, path, &problem.message());
                let page = layout::document(&visit, "Not done", &html! { h1 { "Not done" } (content) });
                Ok((problem.status(), self::html(&page)).into_response())
            }
            Err(problem) => Err(problem),
        }
    }

    /// Returns the request of a known person with its query, which may have these keys.
    pub(super) async fn visit(
        &self,
        keys: &[&str],
        params: HashMap<String, String>,
    ) -> Result<Visit, Problem> {
        let person = self.authenticate().await?;
        let mut query = HashMap::new();
        for (key, value) in url::form_urlencoded::parse(self.uri.query().unwrap_or_default().as_bytes()) {
            if !keys.contains(&&*key) {
                return Err(Problem::BadRequest(format!("unknown key `{key}` in the query")));
            }
            query.insert(key.into_owned(), value.into_owned());
        }
        // No database stores it, and PostgreSQL refuses it.
        if query.values().chain(params.values()).any(|value| value.contains('\0')) {
            return Err(Problem::BadRequest("the address contains a zero byte".to_owned()));
        }
        let status = self.status().await?;
        let below = self.uri.path().strip_prefix(&*self.console.settings.path).unwrap_or_default();
        let section = below.trim_start_matches('/').split('/').next().unwrap_or_default().to_owned();
        let (console, root) = (Arc::clone(&self.console), self.root());
        Ok(Visit { console, person, params, query, root, section, status })
    }

    /// The status, read within the limits of a page. The task that reads it continues if that takes longer, for the pages after this one.
    async fn status(&self) -> Result<Arc<Status>, Problem> {
        let shared = Arc::clone(&self.console.shared);
        let read = tokio::spawn(reading_within(PAGE_STATEMENT, async move { shared.status().await }));
        match tokio::time::timeout(STATUS_WITHIN, read).await {
            Ok(Ok(status)) => Ok(status?),
            Ok(Err(_)) | Err(_) => Err(Problem::Unavailable),
        }
    }

    /// Answers with a problem. If the database fails, the page shows what this process last read.
    pub(super) fn answer_problem(&self, problem: &Problem) -> Response {
        let status = problem.status();
        if self.format == Format::Json {
            return match problem {
                Problem::Unauthorized(_) => status.into_response(),
                _ => (status, axum::Json(serde_json::json!({ "error": problem.message() }))).into_response(),
            };
        }
        let root = self.root();
        let secure = self.console.authentication.is_secure();
        let markup = match problem {
            Problem::Unauthorized(message) => layout::sign_in(&root, secure, message),
            Problem::Unavailable => {
                layout::problem(&root, problem, self.console.shared.last_status().as_deref())
            }
            _ => layout::problem(&root, problem, None),
        };
        (status, html(&markup)).into_response()
    }

    /// Returns an error for a request that another origin may have sent.
    pub(super) fn check_origin(&self) -> Result<(), Problem> {
        let public = self.console.settings.public_url.as_ref();
        let public = public.map(|url| url.origin().ascii_serialization());
        if csrf::is_accepted(&self.headers, public.as_deref()) {
            return Ok(());
        }
        console_refused("origin");
        Err(Problem::Refused("this request is not from a page of the console"))
    }
}

/// The page without the ids of its forms, which are always new.
fn without_requests(page: &str) -> String {
    let mut parts = page.split(action::REQUEST_FIELD);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |page, part| page + part.split_once('"').map_or(part, |(_, rest)| rest))
}

pub(super) fn html(markup: &Markup) -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], markup.0.clone()).into_response()
}

fn sign_in(console: &Arc<Console>) -> MethodRouter<Arc<AppState>> {
    let (shown, sent) = (Arc::clone(console), Arc::clone(console));
    get(async move |uri: Uri| {
        let root = root(&shown.settings.path, uri.path());
        secured(html(&layout::sign_in(&root, shown.authentication.is_secure(), "")))
    })
    .post(
        async move |ConnectInfo(peer): ConnectInfo<PeerIdentity>,
                    headers: HeaderMap,
                    uri: Uri,
                    body: String| {
            let request = Request { console: sent, peer, headers, uri, format: Format::Html };
            let answer = match request.sign_in(&body).await {
                Ok(cookie) => ([(header::SET_COOKIE, cookie)], see_other("./")).into_response(),
                Err(problem) => request.answer_problem(&problem),
            };
            secured(answer)
        },
    )
}

impl Request {
    /// Returns the cookie for the token in the form.
    async fn sign_in(&self, form: &str) -> Result<String, Problem> {
        self.check_origin()?;
        let token = url::form_urlencoded::parse(form.as_bytes()).find(|(key, _)| key == "token");
        let token = token.map(|(_, token)| token.trim().to_owned()).unwrap_or_default();
        let tokens = self.console.tokens().await;
        if let Some(line) = line_of(&tokens, &token) {
            return Ok(self.console.authentication.sign_in(line, self.console.now()));
        }
        console_refused("credential");
        tokio::time::sleep(WRONG_CREDENTIAL_DELAY).await;
        Err(Problem::Unauthorized("the token is wrong"))
    }
}

fn sign_out(console: &Arc<Console>) -> MethodRouter<Arc<AppState>> {
    let console = Arc::clone(console);
    post(async move |ConnectInfo(peer): ConnectInfo<PeerIdentity>, headers: HeaderMap, uri: Uri| {
        let cookie = console.authentication.sign_out();
        let request = Request { console, peer, headers, uri, format: Format::Html };
        secured(match request.check_origin() {
            Ok(()) => ([(header::SET_COOKIE, cookie)], see_other("sign-in")).into_response(),
            Err(problem) => request.answer_problem(&problem),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_forms_change_no_tag() {
        let form = |id| format!("<input type=\"hidden\" {}{id}\"><p>", action::REQUEST_FIELD);
        assert_eq!(without_requests(&form(1)), without_requests(&form(22)));
        assert_eq!(without_requests(&format!("a{}b", form(1))), "a<input type=\"hidden\" ><p>b");
    }

    #[test]
    fn root_is_relative_to_page() {
        for (path, expected) in [
            ("/console/", "./"),
            ("/console/jobs", "./"),
            ("/console/jobs/billing", "../"),
            ("/console/jobs/billing/pause", "../../"),
        ] {
            assert_eq!(root("/console", path), expected, "{path}");
        }
    }
}
