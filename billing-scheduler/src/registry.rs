//! The registry of job kinds: the code of each kind, and the type of its parameters.

use std::{collections::BTreeMap, fmt, marker::PhantomData, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

#[cfg(feature = "runtime")]
use crate::runtime::middleware::Middleware;
use crate::{
    blocking::{Blocking, BlockingJob},
    function::{FnJob, IntoOutcome},
    job::{Job, JobContext},
    mask::Mask,
};

/// The job kinds that a configuration may name. A plugin is a function that fills a registry.
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<String, Kind>,
    mask: Mask,
    #[cfg(feature = "runtime")]
    middleware: Vec<Arc<dyn Middleware>>,
}

struct Kind {
    check: fn(serde_json::Value) -> Result<(), ParamsError>,
    build: Option<Box<Build>>,
    schema: Option<fn() -> serde_json::Value>,
    inspect: Option<Box<Inspect>>,
    secrets: Option<Box<Secrets>>,
}

/// A kind whose parameters have the type `P`: see [`Registry::declare`].
#[derive(Debug)]
pub struct Declaration<'r, P> {
    kind: &'r mut Kind,
    params: PhantomData<fn(P)>,
}

/// A problem with the parameters of a job that their types do not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Whether the job can work in spite of the problem.
    pub severity: Severity,
    /// The keys that lead to the parameter, an index of an array as its decimal number; empty if it is all of them.
    pub path: Vec<String>,
    /// The problem, in one sentence without a period.
    pub message: String,
    /// How to fix it.
    pub help: Option<String>,
}

/// Whether a job can work in spite of a [`Remark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The job can never work.
    Error,
    /// The job cannot work on this host at present, or probably not as intended.
    Warning,
}

type Inspect = dyn Fn(serde_json::Value, Duration) -> Vec<Remark> + Send + Sync;
type Secrets = dyn Fn(serde_json::Value) -> Vec<String> + Send + Sync;
type Build = dyn Fn(serde_json::Value) -> Result<Arc<dyn Job>, ParamsError> + Send + Sync;
type ParamsError = serde_path_to_error::Error<serde_json::Error>;

/// Why a job cannot be built from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration names a kind that no plugin registers.
    #[error("no plugin registers job kind `{kind}` (known: {known})")]
    UnknownKind {
        /// The kind in the configuration.
        kind: String,
        /// The registered kinds, separated by commas.
        known: String,
    },
    /// The registry only checks the parameters of the kind: its declaration has no constructor.
    #[error("job kind `{0}` is declared without a constructor")]
    NoConstructor(String),
    /// The parameters are not valid for the kind.
    #[error("parameters of kind `{kind}`{}: {source}", at(path))]
    Params {
        /// The job kind.
        kind: String,
        /// The keys that lead to the invalid parameter, an index of an array as its decimal number; empty for the parameters as a
        /// whole, such as when one is missing.
        path: Vec<String>,
        /// The error of serde.
        source: serde_json::Error,
    },
}

impl Registry {
    /// Returns an empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares `kind` with the type of its parameters, which is enough to check a configuration. The declaration adds the rest in
    /// the same statement: the constructor, and what is known of the parameters.
    ///
    /// ```
    /// # use billing_scheduler::{Job, JobContext, JobError, Outcome, Registry};
    /// #[derive(serde::Deserialize)]
    /// struct Params { name: String }
    /// struct Greet { params: Params }
    /// # #[async_trait::async_trait]
    /// # impl Job for Greet {
    /// #     async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> { Ok(Outcome::done(1)) }
    /// # }
    /// let mut registry = Registry::new();
    /// registry
    ///     .declare::<Params>("acme.greet")
    ///     .schema(|| {
    ///         serde_json::json!({
    ///             "type": "object",
    ///             "properties": { "name": { "type": "string", "description": "The name to greet." } },
    ///             "required": ["name"],
    ///         })
    ///     })
    ///     .job(|params| Greet { params });
    /// assert!(registry.build("acme.greet", serde_json::json!({ "name": "Ada" })).is_ok());
    /// ```
    ///
    /// # Panics
    /// If the kind is already declared: two plugins with one name are a programming error.
    pub fn declare<P: DeserializeOwned>(&mut self, kind: &str) -> Declaration<'_, P> {
        let check = |params| typed::<P>(params).map(drop);
        let declared = Kind { check, build: None, schema: None, inspect: None, secrets: None };
        let clash = self.kinds.contains_key(kind);
        assert!(!clash, "job kind `{kind}` is declared twice: give one of the plugins' kinds another name");
        let kind = self.kinds.entry(kind.to_owned()).or_insert(declared);
        Declaration { kind, params: PhantomData }
    }

    /// Declares `kind` with a constructor alone. `make` is called once per job of that kind, with the job's parameters.
    ///
    /// # Panics
    /// If the kind is already declared.
    pub fn register<P, J>(&mut self, kind: &str, make: impl Fn(P) -> J + Send + Sync + 'static)
    where
        P: DeserializeOwned,
        J: Job,
    {
        self.declare(kind).job(make);
    }

    /// Declares `kind` like [`Registry::register`], for a job that blocks: each run has a separate thread.
    ///
    /// # Panics
    /// If the kind is already declared.
    pub fn register_blocking<P, J>(&mut self, kind: &str, make: impl Fn(P) -> J + Send + Sync + 'static)
    where
        P: DeserializeOwned,
        J: BlockingJob,
    {
        self.declare(kind).blocking_job(make);
    }

    /// Declares `kind` as an async function of the run's context and the job's parameters, which each run gets as a copy.
    ///
    /// ```
    /// # use billing_scheduler::{JobContext, Registry};
    /// #[derive(Clone, serde::Deserialize)]
    /// struct Greet { name: String }
    ///
    /// let mut registry = Registry::new();
    /// registry.register_fn("acme.greet", |ctx, params: Greet| async move {
    ///     println!("{}: hello {}", ctx.occurrence, params.name);
    /// });
    /// ```
    ///
    /// # Panics
    /// If the kind is already declared.
    pub fn register_fn<P, F, R>(&mut self, kind: &str, run: F)
    where
        P: DeserializeOwned + Clone + Send + Sync + 'static,
        F: Fn(JobContext, P) -> R + Send + Sync + 'static,
        R: Future<Output: IntoOutcome> + Send + 'static,
    {
        let run = Arc::new(run);
        self.register(kind, move |params: P| {
            let run = Arc::clone(&run);
            FnJob(move |ctx| run(ctx, params.clone()))
        });
    }

    /// Returns the JSON Schema of the parameters of `kind`, if the kind has one.
    #[must_use]
    pub fn schema(&self, kind: &str) -> Option<serde_json::Value> {
        self.kinds.get(kind)?.schema.map(|schema| schema())
    }

    /// Returns the problems with the parameters of a job that has this timeout; none if the parameters are invalid.
    #[must_use]
    pub fn remarks(&self, kind: &str, params: serde_json::Value, timeout: Duration) -> Vec<Remark> {
        let inspect = self.kinds.get(kind).and_then(|kind| kind.inspect.as_ref());
        inspect.map(|inspect| inspect(params, timeout)).unwrap_or_default()
    }

    /// Returns the current secrets of the parameters of a job of `kind`; none if the parameters are invalid.
    #[must_use]
    pub fn secrets_of(&self, kind: &str, params: serde_json::Value) -> Vec<String> {
        let secrets = self.kinds.get(kind).and_then(|kind| kind.secrets.as_ref());
        secrets.map(|secrets| secrets(params)).unwrap_or_default()
    }

    /// Masks `secrets` in the error and the details of every run of every job. A job masks secrets that it reads itself with
    /// [`JobContext::conceal`](crate::JobContext::conceal).
    pub fn conceal<T: AsRef<str>>(&mut self, secrets: impl IntoIterator<Item = T>) {
        self.mask.add(secrets);
    }

    /// Returns the mask for the secrets of all jobs.
    #[cfg(feature = "runtime")]
    pub(crate) fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Adds `middleware` around each run of each job. The first one is the outermost.
    #[cfg(feature = "runtime")]
    pub fn layer(&mut self, middleware: impl Middleware) {
        self.middleware.push(Arc::new(middleware));
    }

    /// Returns the middleware of plugins, the outermost first.
    #[cfg(feature = "runtime")]
    pub(crate) fn middleware(&self) -> &[Arc<dyn Middleware>] {
        &self.middleware
    }

    /// Builds a job of `kind` from its parameters, which may be an empty object.
    pub fn build(&self, kind: &str, params: serde_json::Value) -> Result<Arc<dyn Job>, BuildError> {
        let build = self.kind(kind)?.build.as_ref();
        let build = build.ok_or_else(|| BuildError::NoConstructor(kind.to_owned()))?;
        build(params).map_err(|error| refused(kind, error))
    }

    /// Checks whether the parameters are valid for `kind`, without building the job.
    pub fn check(&self, kind: &str, params: serde_json::Value) -> Result<(), BuildError> {
        (self.kind(kind)?.check)(params).map_err(|error| refused(kind, error))
    }

    /// Returns all kinds, in alphabetical order.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.kinds.keys().map(String::as_str)
    }

    fn kind(&self, kind: &str) -> Result<&Kind, BuildError> {
        self.kinds.get(kind).ok_or_else(|| BuildError::UnknownKind {
            kind: kind.to_owned(),
            known: self.kinds().collect::<Vec<_>>().join(", "),
        })
    }
}

impl<P: DeserializeOwned> Declaration<'_, P> {
    /// Describes the parameters by a JSON Schema, with which editors complete and check a configuration. The crate `schemars`
    /// derives one. It must be self-contained: its references are under its own `$defs`.
    pub fn schema(self, schema: fn() -> serde_json::Value) -> Self {
        self.kind.schema = Some(schema);
        self
    }

    /// Adds a check for problems that the types of the parameters do not show, such as a contradiction to the job's timeout, which
    /// is the second argument, or a file that is missing on this host. `inspect` must have no side effects.
    pub fn inspect(self, inspect: impl Fn(&P, Duration) -> Vec<Remark> + Send + Sync + 'static) -> Self {
        self.kind.inspect = Some(Box::new(move |params, timeout| {
            typed(params).map(|params| inspect(&params, timeout)).unwrap_or_default()
        }));
        self
    }

    /// Adds the secrets that the parameters contain or refer to, so that they are masked in output and logs.
    pub fn secrets(self, secrets: impl Fn(&P) -> Vec<String> + Send + Sync + 'static) -> Self {
        self.kind.secrets =
            Some(Box::new(move |params| typed(params).map(|params| secrets(&params)).unwrap_or_default()));
        self
    }

    /// Adds the constructor, which is called once per job of the kind, with the job's parameters.
    pub fn job<J: Job>(self, make: impl Fn(P) -> J + Send + Sync + 'static) {
        let build = move |params| typed(params).map(|params| Arc::new(make(params)) as Arc<dyn Job>);
        self.kind.build = Some(Box::new(build));
    }

    /// Adds the constructor of a job that blocks: each run has a separate thread.
    pub fn blocking_job<J: BlockingJob>(self, make: impl Fn(P) -> J + Send + Sync + 'static) {
        self.job(move |params| Blocking::new(make(params)));
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kind").finish_non_exhaustive()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.kinds()).finish()
    }
}

fn typed<P: DeserializeOwned>(params: serde_json::Value) -> Result<P, ParamsError> {
    serde_path_to_error::deserialize(params)
}

fn refused(kind: &str, error: ParamsError) -> BuildError {
    let key = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Map { key } | Segment::Enum { variant: key } => Some(key.clone()),
        Segment::Unknown => None,
    };
    let path = error.path().iter().map_while(key).collect();
    BuildError::Params { kind: kind.to_owned(), path, source: error.into_inner() }
}

fn at(path: &[String]) -> String {
    if path.is_empty() { String::new() } else { format!(" at `{}`", path.join(".")) }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::job::{JobError, Outcome};

    struct Nothing;

    #[async_trait]
    impl Job for Nothing {
        async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> {
            Ok(Outcome::done(0))
        }
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Params {
        #[expect(dead_code, reason = "only its type is of interest")]
        sizes: Vec<u32>,
    }

    #[test]
    fn kind_without_constructor_is_only_checked() {
        let mut registry = Registry::new();
        registry.declare::<Params>("sized").schema(|| json!({ "type": "object" }));
        assert_eq!(registry.schema("sized"), Some(json!({ "type": "object" })));
        assert!(registry.check("sized", json!({ "sizes": [] })).is_ok());
        assert!(registry.check("sized", json!({})).is_err());
        let built = registry.build("sized", json!({ "sizes": [] })).map(drop);
        assert!(matches!(built, Err(BuildError::NoConstructor(kind)) if kind == "sized"));
    }

    #[test]
    #[should_panic(expected = "`sized` is declared twice")]
    fn second_declaration_of_kind_panics() {
        let mut registry = Registry::new();
        registry.declare::<Params>("sized");
        registry.register("sized", |_: Params| Nothing);
    }

    #[test]
    fn invalid_params_error_names_their_path() {
        let mut registry = Registry::new();
        registry.register("sized", |_: Params| Nothing);
        let message = |params| registry.check("sized", params).err().map(|error| error.to_string());
        assert_eq!(message(json!({ "sizes": [1, 2] })), None);
        assert_eq!(
            message(json!({ "sizes": [1, "2"] })).as_deref(),
            Some(r#"parameters of kind `sized` at `sizes.1`: invalid type: string "2", expected u32"#)
        );
        assert_eq!(
            message(json!({ "size": 1 })).as_deref(),
            Some("parameters of kind `sized` at `size`: unknown field `size`, expected `sizes`")
        );
        assert_eq!(message(json!({})).as_deref(), Some("parameters of kind `sized`: missing field `sizes`"));
    }
}
