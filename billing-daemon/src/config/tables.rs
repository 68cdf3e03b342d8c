//! The keys of jobs.toml, one type a table: the reader takes the known and the required keys from these types, and the JSON Schema
//! is derived from them. The reader itself parses the values, since it reports every mistake with its line and column.
#![expect(dead_code, reason = "only the types of the fields are used")]
#![expect(clippy::doc_markdown, reason = "the comments are the descriptions that editors show as plain text")]

use std::{borrow::Cow, marker::PhantomData};

use billing_kinds::{Ping, Secret};
use billing_scheduler::{DstFold, DstGap, JobSpec, Misfire, Retry, Scope, Skipped, duration};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

use super::{
    DaemonSettings, PanelBilling,
    console::{ConsoleAccess, OtherPersons, PATH},
    log::LEVELS,
};

/// What billing-daemon runs, and when. `billing-daemon check` reports every mistake in it.
#[derive(JsonSchema)]
#[schemars(title = "jobs.toml of billing-daemon", deny_unknown_fields)]
pub(super) struct JobsFile {
    daemon: Option<DaemonTable>,
    http: Option<HttpTable>,
    /// What runs, and when: one [[job]] each.
    #[schemars(length(min = 1))]
    job: Vec<JobTable>,
}

/// The settings of the process, which all jobs share.
#[derive(JsonSchema)]
#[schemars(inline, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DaemonTable {
    /// Where the panel's tables are: postgres://user:password@host:5432/panel or sqlite://billing.db. DATABASE_URL wins.
    #[schemars(regex(
        pattern = r"^\s*([Pp][Oo][Ss][Tt][Gg][Rr][Ee][Ss]([Qq][Ll])?|[Ss][Qq][Ll][Ii][Tt][Ee]):[^\s]*\s*$"
    ))]
    database_url: Option<String>,
    /// Which events are logged: a level, or targets with levels such as billing_daemon=debug,sqlx=warn. LOG_LEVEL wins.
    #[schemars(extend("default" = "info"))]
    log_level: Option<LogLevel>,
    /// How long runs in progress continue after SIGTERM or SIGINT before they are requested to stop; billing then stops after its
    /// batch.
    #[schemars(extend("default" = duration::format(DaemonSettings::default().drain_timeout)))]
    drain_timeout: Option<DurationText>,
    /// How long the work of a daemon that died waits for another one; at least 3s.
    #[schemars(extend("default" = duration::format(DaemonSettings::default().lease_ttl)))]
    lease_ttl: Option<DurationText>,
    /// The folder in which this daemon notes the newest batch of charges, to detect a restored database. A systemd service has
    /// $STATE_DIRECTORY without this.
    state_dir: Option<String>,
    /// Whether a panel on the same database bills itself. `off`: the operator has switched that off.
    #[schemars(extend("default" = "on"))]
    panel_billing: Option<Word<PanelBilling>>,
    /// Whether a database on another host may be used without proof by TLS that it is the right one.
    #[schemars(extend("default" = DaemonSettings::default().allow_unverified_database))]
    allow_unverified_database: Option<bool>,
}

/// A read-only HTTP API. Off without this section.
#[derive(JsonSchema)]
#[schemars(inline, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct HttpTable {
    /// An address such as 127.0.0.1:9464, or a Unix socket: unix:/run/billing-daemon/http.sock. An address that other hosts can reach,
    /// such as 0.0.0.0:9464, needs `token`.
    #[schemars(regex(pattern = r"^(unix:/.*|[0-9.]+:[0-9]+|\[[0-9A-Fa-f:.]+\]:[0-9]+)$"))]
    listen: String,
    /// Where the token is that every request except /healthz must have, as `Authorization: Bearer TOKEN`; at least 16 characters.
    token: Option<SecretSource>,
    /// Host names that a proxy on this host may use in requests, in addition to localhost, 127.0.0.1 and [::1].
    #[schemars(extend("default" = []))]
    allowed_hosts: Option<Vec<String>>,
    /// Ids of users that may connect to a Unix socket, in addition to root and the daemon's user.
    #[schemars(extend("default" = []))]
    allowed_uids: Option<Vec<u32>>,
    console: Option<ConsoleTable>,
}

/// Pages for operators: what is wrong, why, and the actions that fix it. Off without this section.
#[derive(JsonSchema)]
#[schemars(inline, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ConsoleTable {
    /// The most that any person may do on this listener: nothing, read, or read and act.
    #[schemars(extend("default" = "off"))]
    access: Option<Word<ConsoleAccess>>,
    /// Where the pages are.
    #[schemars(regex(pattern = r"^(/[A-Za-z0-9_-]+)+$"), extend("default" = PATH))]
    path: Option<String>,
    /// Where browsers reach the console through a proxy, such as https://ops.example.com/billing. With https the cookie is Secure.
    public_url: Option<String>,
    /// A file with one line for each token: `billing-daemon console token` prints it.
    tokens_file: Option<String>,
    /// Where the key that signs cookies is, at least 16 characters: sign-ins then survive a restart and are valid on several daemons.
    /// Without it each process has a random one.
    session_key: Option<SecretSource>,
    /// Where the URL with the login `billing_adjust` is, which may write the policy of a customer.
    adjust_database_url: Option<SecretSource>,
    proxy: Option<ProxyTable>,
}

/// A proxy that signs people in. It must remove both headers from the requests that it receives.
#[derive(JsonSchema)]
#[schemars(inline, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ProxyTable {
    /// The header in which the proxy sends the person's name.
    user_header: String,
    /// Where the secret is that the proxy sends as X-Billing-Proxy-Secret; at least 16 characters.
    secret: SecretSource,
    /// Who may view, operate and read the audit log.
    #[schemars(extend("default" = []))]
    operators: Option<Vec<String>>,
    /// Who may view, approve and read the audit log.
    #[schemars(extend("default" = []))]
    approvers: Option<Vec<String>>,
    /// What everyone else may do.
    #[schemars(extend("default" = "none"))]
    others: Option<Word<OtherPersons>>,
}

/// A job: what it does, when, and how it retries.
#[derive(JsonSchema)]
#[schemars(inline, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct JobTable {
    /// Unique among the jobs. The history of the job has this name.
    #[schemars(regex(pattern = "^[a-z0-9_-]+$"))]
    name: String,
    /// Which code runs.
    kind: String,
    /// When: a table, or a list of tables. The job is due whenever one of them is.
    schedule: ScheduleValue,
    /// The job is not due before this.
    not_before: Option<InstantText>,
    /// The job is not due after this.
    not_after: Option<InstantText>,
    /// For local times that a clock change skips. shift: due once, after the gap. skip: not due that day.
    dst_gap: Option<Word<DstGap>>,
    /// For local times that a clock change repeats.
    dst_fold: Option<Word<DstFold>>,
    /// Each run starts up to this long after its scheduled time, with the same delay on every daemon.
    jitter: Option<DurationText>,
    /// cluster: one of the daemons that share a database runs it. node: each of them does.
    #[schemars(extend("default" = "cluster"))]
    scope: Option<Word<Scope>>,
    /// For scheduled times that passed without a run. coalesce: one run for all of them. catch-up: each of them, the oldest first.
    /// skip: only the latest, if it is hardly late.
    #[schemars(extend("default" = "coalesce"))]
    misfire: Option<Word<Misfire>>,
    /// A scheduled time that is later than this is not run; at least 50ms.
    misfire_grace: Option<DurationText>,
    /// With `misfire = "catch-up"`: how many scheduled times may wait.
    #[schemars(range(min = 1, max = Skipped::MAX_COUNTED), extend("default" = JobSpec::CATCH_UP_LIMIT))]
    catch_up_limit: Option<u32>,
    /// Whether a job that never ran is due at once instead of at its next scheduled time.
    #[schemars(extend("default" = false))]
    run_at_start: Option<bool>,
    /// How long one run may take. A longer one is stopped and counts as failed.
    #[schemars(extend("default" = duration::format(JobSpec::TIMEOUT)))]
    timeout: Option<DurationText>,
    retry: Option<RetryTable>,
    /// Whether the job runs.
    #[schemars(extend("default" = true))]
    enabled: Option<bool>,
    /// Permits a gap of more than 90 minutes, after which the panel takes billing back.
    #[schemars(extend("default" = false))]
    allow_long_gaps: Option<bool>,
    ping: Option<Ping>,
    /// The parameters of the kind.
    params: Option<Map<String, Value>>,
}

/// How a failed run is retried.
#[derive(JsonSchema)]
#[schemars(inline, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RetryTable {
    /// How often it is attempted in total.
    #[schemars(range(min = 1), extend("default" = Retry::default().max_attempts))]
    max_attempts: Option<u32>,
    /// The delay after the first failure; each further failure doubles it.
    #[schemars(extend("default" = duration::format(Retry::default().backoff)))]
    backoff: Option<DurationText>,
    /// The longest delay.
    #[schemars(extend("default" = duration::format(Retry::default().max_backoff)))]
    max_backoff: Option<DurationText>,
    /// By how many percent a delay is shortened at most.
    #[schemars(range(max = 100), extend("default" = Retry::default().jitter_percent))]
    jitter_percent: Option<u32>,
}

#[derive(JsonSchema)]
#[schemars(inline, untagged)]
enum ScheduleValue {
    One(ScheduleTable),
    Any(#[schemars(length(min = 1))] Vec<ScheduleTable>),
}

/// A schedule in one of its three forms: an interval, a cron expression or instants.
#[derive(JsonSchema)]
#[schemars(rename = "schedule", untagged)]
pub(super) enum ScheduleTable {
    Every(EveryTable),
    Cron(CronTable),
    At(AtTable),
}

/// A fixed interval.
#[derive(JsonSchema)]
#[schemars(rename = "every", deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct EveryTable {
    /// Every multiple of this since 1970, in whole seconds.
    every: DurationText,
    /// And this much later.
    offset: Option<DurationText>,
    /// The schedule begins at this time.
    not_before: Option<InstantText>,
    /// The schedule ends at this time.
    not_after: Option<InstantText>,
}

/// A cron text.
#[derive(JsonSchema)]
#[schemars(rename = "cron", deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct CronTable {
    /// 5 fields (minute, hour, day of month, month, day of week), 6 with the second first, or a nickname such as @hourly.
    #[schemars(
        regex(
            pattern = r"^\s*(@(hourly|daily|midnight|weekly|monthly|yearly|annually)|[^@\s]\S*(\s+\S+){4,5})\s*$"
        ),
        extend("examples" = ["0 5 * * * *", "30 2 * * *", "@hourly"])
    )]
    cron: String,
    /// A name of the IANA database, such as Europe/Berlin.
    #[schemars(extend("default" = "UTC"))]
    timezone: Option<String>,
    /// As `dst-gap` of the job, for this schedule alone.
    dst_gap: Option<Word<DstGap>>,
    /// As `dst-fold` of the job, for this schedule alone.
    dst_fold: Option<Word<DstFold>>,
    /// The schedule begins at this time.
    not_before: Option<InstantText>,
    /// The schedule ends at this time.
    not_after: Option<InstantText>,
}

/// The instant of a single run.
#[derive(JsonSchema)]
#[schemars(rename = "at", deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct AtTable {
    /// Once, at this time.
    at: InstantText,
    /// The schedule begins at this time.
    not_before: Option<InstantText>,
    /// The schedule ends at this time.
    not_after: Option<InstantText>,
}

/// A value that is one of a few words.
pub(super) trait Words: Copy + 'static {
    /// The words and their meanings.
    const WORDS: &'static [(&'static str, Self)];
}

impl Words for PanelBilling {
    const WORDS: &'static [(&'static str, Self)] = &[("on", Self::On), ("off", Self::Off)];
}

impl Words for ConsoleAccess {
    const WORDS: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("read", Self::Read), ("operate", Self::Operate)];
}

impl Words for OtherPersons {
    const WORDS: &'static [(&'static str, Self)] = &[("view", Self::View), ("none", Self::None)];
}

impl Words for Scope {
    const WORDS: &'static [(&'static str, Self)] = &[("cluster", Self::Cluster), ("node", Self::Node)];
}

impl Words for Misfire {
    const WORDS: &'static [(&'static str, Self)] =
        &[("coalesce", Self::Coalesce), ("catch-up", Self::CatchUp), ("skip", Self::Skip)];
}

impl Words for DstGap {
    const WORDS: &'static [(&'static str, Self)] = &[("shift", Self::Shift), ("skip", Self::Skip)];
}

impl Words for DstFold {
    const WORDS: &'static [(&'static str, Self)] =
        &[("first", Self::First), ("last", Self::Last), ("both", Self::Both)];
}

/// The schema of a [`Words`] type.
pub(super) struct Word<T>(PhantomData<T>);
/// The schema of a duration in quotes.
pub(super) struct DurationText;
/// The schema of an instant, in quotes or as TOML writes it.
pub(super) struct InstantText;
/// The schema of a log filter.
pub(super) struct LogLevel;
/// The schema of the place of a secret.
pub(super) struct SecretSource;

macro_rules! inline_schema {
    ($type:ty $(, $parameter:ident: $bound:ident)?; $schema:expr) => {
        impl$(<$parameter: $bound>)? JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

inline_schema!(Word<T>, T: Words; json_schema!({ "enum": T::WORDS.iter().map(|(word, _)| *word).collect::<Vec<_>>() }));

inline_schema!(DurationText; json_schema!({
    "type": "string",
    "pattern": duration::PATTERN,
    "examples": ["90s", "15m", "1h 30m", "30d"],
}));

const INSTANT: &str = r"^\s*[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})\s*$";

inline_schema!(InstantText; json_schema!({
    // Editors that distinguish a time of TOML from a string accept both by this format.
    "anyOf": [
        { "type": "string", "format": "date-time", "pattern": INSTANT },
        { "type": "string", "pattern": INSTANT },
    ],
    "examples": ["2026-12-01T00:00:00Z"],
}));

inline_schema!(LogLevel; json_schema!({
    "anyOf": [
        { "enum": LEVELS },
        { "type": "string", "pattern": r"[=\[,]|^(ERROR|WARN|INFO|DEBUG|TRACE)$" },
    ],
}));

inline_schema!(SecretSource; {
    let mut schema = Secret::json_schema(&mut SchemaGenerator::default());
    let places = schema.get_mut("anyOf").and_then(Value::as_array_mut);
    // Not the text itself.
    places.expect("a secret has alternatives").retain(|place| place["type"] == "object");
    schema
});

/// The keys of a table.
pub(super) struct TableKeys {
    pub(super) known: Vec<String>,
    pub(super) required: Vec<String>,
}

impl TableKeys {
    /// Returns the keys of `T`, or of all its variants.
    pub(super) fn of<T: JsonSchema>() -> Self {
        let schema = SchemaGenerator::default().into_root_schema_for::<T>().to_value();
        let variants = schema["anyOf"].as_array().into_iter().flatten();
        let variants = variants.map(|variant| match variant["$ref"].as_str() {
            Some(path) => schema.pointer(path.trim_start_matches('#')).unwrap_or(variant),
            None => variant,
        });
        let tables = std::iter::once(&schema).chain(variants);
        let keys = tables.filter_map(|table| table["properties"].as_object());
        let mut known: Vec<_> = keys.flat_map(Map::keys).cloned().collect();
        known.sort_unstable();
        known.dedup();
        let required = schema["required"].as_array().into_iter().flatten();
        Self { known, required: required.filter_map(|key| key.as_str().map(str::to_owned)).collect() }
    }
}
