//! Which code runs for which kind, and how its parameters are typed.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

#[cfg(feature = "runtime")]
use crate::Middleware;
use crate::{BlockingJob, Job, blocking::Blocking};

/// The kinds of jobs that a configuration may name. A plugin is a function that fills one.
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<String, Kind>,
    #[cfg(feature = "runtime")]
    middleware: Vec<Arc<dyn Middleware>>,
}

struct Kind {
    check: fn(serde_json::Value) -> Result<(), ParamsError>,
    build: Box<Build>,
    schema: Option<fn() -> serde_json::Value>,
}

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
        let known = self.kinds.get_mut(kind);
        known.unwrap_or_else(|| panic!("job kind `{kind}` is described but not registered")).schema =
            Some(schema);
    }

    /// How the parameters of `kind` look, if it is known and somebody said so.
    #[must_use]
    pub fn schema(&self, kind: &str) -> Option<serde_json::Value> {
        self.kinds.get(kind)?.schema.map(|schema| schema())
    }

    /// Puts `middleware` around each run of each job. The first one is the outermost.
    #[cfg(feature = "runtime")]
    pub fn layer(&mut self, middleware: impl Middleware) {
        self.middleware.push(Arc::new(middleware));
    }

    /// Everything that surrounds a run, the outermost first.
    #[cfg(feature = "runtime")]
    pub(crate) fn middleware(&self) -> Vec<Arc<dyn Middleware>> {
        std::iter::once(Arc::new(crate::Tracing) as Arc<dyn Middleware>)
            .chain(self.middleware.iter().cloned())
            .collect()
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
    use crate::{JobContext, JobError, Outcome};

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
