//! Which code runs for which kind, and how its parameters are typed.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

#[cfg(feature = "runtime")]
use crate::runtime::middleware::Middleware;
use crate::{
    blocking::{Blocking, BlockingJob},
    job::Job,
    mask::Mask,
};

/// The kinds of jobs that a configuration may name. A plugin is a function that fills one.
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<String, Kind>,
    mask: Mask,
    #[cfg(feature = "runtime")]
    middleware: Vec<Arc<dyn Middleware>>,
}

struct Kind {
    check: fn(serde_json::Value) -> Result<(), ParamsError>,
    build: Box<Build>,
    schema: Option<fn() -> serde_json::Value>,
    inspect: Option<Box<Inspect>>,
    secrets: Option<Box<Secrets>>,
}

/// What a kind finds in the parameters of a job that their types do not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Whether the job can work nevertheless.
    pub severity: Severity,
    /// The keys that lead to the parameter, an index of an array as its decimal number; empty if it is all of them.
    pub path: Vec<String>,
    /// What is wrong, in one sentence without a period.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// Whether a job can work in spite of a [`Remark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It can never work.
    Error,
    /// It cannot work here and now, or hardly as intended.
    Warning,
}

type Inspect = dyn Fn(serde_json::Value, Duration) -> Vec<Remark> + Send + Sync;
type Secrets = dyn Fn(serde_json::Value) -> Vec<String> + Send + Sync;
type Build = dyn Fn(serde_json::Value) -> Result<Arc<dyn Job>, ParamsError> + Send + Sync;
type ParamsError = serde_path_to_error::Error<serde_json::Error>;

/// Why a job could not be made from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration names a kind that nothing registered.
    #[error("no plugin registers job kind `{kind}` (known: {known})")]
    UnknownKind {
        /// As written.
        kind: String,
        /// All that are registered.
        known: String,
    },
    /// The parameters do not fit what the kind expects.
    #[error("parameters of kind `{kind}`{}: {source}", at(path))]
    Params {
        /// The kind whose parameters these are.
        kind: String,
        /// The keys that lead to the one that does not fit, an index of an array as its decimal number; empty if it is
        /// the parameters as a whole, as when one is missing.
        path: Vec<String>,
        /// What does not fit.
        source: serde_json::Error,
    },
}

impl Registry {
    /// A registry that knows nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `kind` known. `make` is called once per job of that kind, with the job's parameters.
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
    /// registry.register("acme.greet", |params: Params| Greet { params });
    /// assert!(registry.build("acme.greet", serde_json::json!({ "name": "Ada" })).is_ok());
    /// ```
    ///
    /// # Panics
    /// If the kind is registered already: two plugins that claim one name are a mistake of the program's author.
    pub fn register<P, J>(&mut self, kind: &str, make: impl Fn(P) -> J + Send + Sync + 'static)
    where
        P: DeserializeOwned,
        J: Job,
    {
        let kind_of_job = Kind {
            check: |params| typed::<P>(params).map(drop),
            build: Box::new(move |params| typed(params).map(|params| Arc::new(make(params)) as Arc<dyn Job>)),
            schema: None,
            inspect: None,
            secrets: None,
        };
        let clash = self.kinds.insert(kind.to_owned(), kind_of_job).is_some();
        assert!(!clash, "job kind `{kind}` is registered twice: give one of the plugins' kinds another name");
    }

    /// Makes `kind` known as [`Registry::register`] does, for a job that blocks: each run has a thread of its own.
    ///
    /// # Panics
    /// If the kind is registered already.
    pub fn register_blocking<P, J>(&mut self, kind: &str, make: impl Fn(P) -> J + Send + Sync + 'static)
    where
        P: DeserializeOwned,
        J: BlockingJob,
    {
        self.register(kind, move |params| Blocking::new(make(params)));
    }

    /// Says how the parameters of `kind` look, as a JSON Schema: for editors, which complete and check a configuration by it.
    /// The crate `schemars` derives one; it stands by itself, and what it refers to is under its own `$defs`.
    ///
    /// ```
    /// # use billing_scheduler::{Job, JobContext, JobError, Outcome, Registry};
    /// # struct Greet;
    /// # #[async_trait::async_trait]
    /// # impl Job for Greet {
    /// #     async fn run(&self, _: &JobContext) -> Result<Outcome, JobError> { Ok(Outcome::done(1)) }
    /// # }
    /// # #[derive(serde::Deserialize)]
    /// # struct Params { name: String }
    /// # let mut registry = Registry::new();
    /// # registry.register("acme.greet", |_: Params| Greet);
    /// registry.describe("acme.greet", || {
    ///     serde_json::json!({
    ///         "type": "object",
    ///         "properties": { "name": { "type": "string", "description": "Whom." } },
    ///         "required": ["name"],
    ///     })
    /// });
    /// ```
    ///
    /// # Panics
    /// If nothing registers the kind.
    pub fn describe(&mut self, kind: &str, schema: fn() -> serde_json::Value) {
        self.known(kind).schema = Some(schema);
    }

    /// How the parameters of `kind` look, if it is known and somebody said so.
    #[must_use]
    pub fn schema(&self, kind: &str) -> Option<serde_json::Value> {
        self.kinds.get(kind)?.schema.map(|schema| schema())
    }

    /// Adds what `kind` finds in parameters that their types do not show: what contradicts the job's timeout, which is the second
    /// argument, or is missing on this host. Nothing that `inspect` does may change anything.
    ///
    /// # Panics
    /// If nothing registers the kind.
    pub fn inspect<P: DeserializeOwned>(
        &mut self,
        kind: &str,
        inspect: impl Fn(&P, Duration) -> Vec<Remark> + Send + Sync + 'static,
    ) {
        self.known(kind).inspect = Some(Box::new(move |params, timeout| {
            typed(params).map(|params| inspect(&params, timeout)).unwrap_or_default()
        }));
    }

    /// What `kind` finds in the parameters of a job that may run for `timeout`. Nothing if they are not valid.
    #[must_use]
    pub fn remarks(&self, kind: &str, params: serde_json::Value, timeout: Duration) -> Vec<Remark> {
        let inspect = self.kinds.get(kind).and_then(|kind| kind.inspect.as_ref());
        inspect.map(|inspect| inspect(params, timeout)).unwrap_or_default()
    }

    /// Adds which secrets the parameters of `kind` lead to, for what shows a configuration or a log.
    ///
    /// # Panics
    /// If nothing registers the kind.
    pub fn secrets<P: DeserializeOwned>(
        &mut self,
        kind: &str,
        secrets: impl Fn(&P) -> Vec<String> + Send + Sync + 'static,
    ) {
        self.known(kind).secrets =
            Some(Box::new(move |params| typed(params).map(|params| secrets(&params)).unwrap_or_default()));
    }

    /// The secrets that the parameters of a job of `kind` lead to now. None if they are not valid.
    #[must_use]
    pub fn secrets_of(&self, kind: &str, params: serde_json::Value) -> Vec<String> {
        let secrets = self.kinds.get(kind).and_then(|kind| kind.secrets.as_ref());
        secrets.map(|secrets| secrets(params)).unwrap_or_default()
    }

    /// Hides `secrets` in the error and the details of every run of every job. A secret that a job reads itself is for
    /// [`JobContext::conceal`](crate::JobContext::conceal).
    pub fn conceal<T: AsRef<str>>(&mut self, secrets: impl IntoIterator<Item = T>) {
        self.mask.add(secrets);
    }

    /// What hides the secrets of all jobs.
    #[cfg(feature = "runtime")]
    pub(crate) fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Puts `middleware` around each run of each job. The first one is the outermost.
    #[cfg(feature = "runtime")]
    pub fn layer(&mut self, middleware: impl Middleware) {
        self.middleware.push(Arc::new(middleware));
    }

    /// What plugins put around each run, the outermost first.
    #[cfg(feature = "runtime")]
    pub(crate) fn middleware(&self) -> &[Arc<dyn Middleware>] {
        &self.middleware
    }

    /// Makes a job of `kind` from its parameters. No parameters are an empty object.
    pub fn build(&self, kind: &str, params: serde_json::Value) -> Result<Arc<dyn Job>, BuildError> {
        (self.kind(kind)?.build)(params).map_err(|error| refused(kind, error))
    }

    /// Tells whether [`Registry::build`] would succeed, and makes nothing.
    pub fn check(&self, kind: &str, params: serde_json::Value) -> Result<(), BuildError> {
        (self.kind(kind)?.check)(params).map_err(|error| refused(kind, error))
    }

    /// All kinds, in alphabetical order.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.kinds.keys().map(String::as_str)
    }

    fn known(&mut self, kind: &str) -> &mut Kind {
        let known = self.kinds.get_mut(kind);
        known.unwrap_or_else(|| panic!("job kind `{kind}` is described but not registered"))
    }

    fn kind(&self, kind: &str) -> Result<&Kind, BuildError> {
        self.kinds.get(kind).ok_or_else(|| BuildError::UnknownKind {
            kind: kind.to_owned(),
            known: self.kinds().collect::<Vec<_>>().join(", "),
        })
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
    use crate::job::{JobContext, JobError, Outcome};

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
    fn an_error_says_where_in_the_parameters_it_is() {
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
