#![doc = include_str!("../README.md")]

mod checked;
#[cfg(unix)]
mod command;
mod concealed;
#[cfg(unix)]
mod group;
mod http;
pub mod input_file;
mod inspect;
#[cfg(unix)]
mod one_shot;
pub mod pem;
#[cfg(feature = "pings")]
mod pings;
mod secret;

use billing_scheduler::Registry;
use schemars::schema_for;

pub use checked::{UrlError, check_url};
#[cfg(unix)]
pub use command::{Command, CommandParams};
pub use http::{Http, HttpError, HttpParams, Method, Request, Response};
#[cfg(unix)]
pub use one_shot::{Finished, run_with_input};
#[cfg(feature = "pings")]
pub use pings::{Ping, Pings};
pub use secret::{Secret, SecretError};

/// Declares the kinds `command` (on Unix) and `http`.
///
/// # Panics
/// If one of them is already declared.
pub fn register(registry: &mut Registry) {
    #[cfg(unix)]
    registry
        .declare::<CommandParams>("command")
        .schema(|| schema_for!(CommandParams).to_value())
        .inspect(|params, _| inspect::command(params))
        .secrets(CommandParams::secrets)
        .job(Command::new);
    registry
        .declare::<HttpParams>("http")
        .schema(|| schema_for!(HttpParams).to_value())
        .inspect(inspect::http)
        .secrets(HttpParams::secrets)
        .job(Http::new);
}
