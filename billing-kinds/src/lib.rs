#![doc = include_str!("../README.md")]

mod checked;
#[cfg(unix)]
mod command;
mod concealed;
#[cfg(unix)]
mod group;
mod http;
mod inspect;
pub mod pem;
#[cfg(feature = "pings")]
mod pings;
mod secret;

use billing_scheduler::Registry;
use schemars::schema_for;

pub use checked::{UrlError, check_url};
#[cfg(unix)]
pub use command::{Command, CommandParams};
pub use http::{Answer, Http, HttpError, HttpParams, Method, Request};
#[cfg(feature = "pings")]
pub use pings::{Ping, Pings};
pub use secret::{Secret, SecretError};

/// Makes the kinds `command` (on Unix) and `http` known.
///
/// # Panics
/// If one of them is known already.
pub fn register(registry: &mut Registry) {
    #[cfg(unix)]
    {
        registry.register("command", Command::new);
        registry.describe("command", || schema_for!(CommandParams).to_value());
        registry.inspect("command", |params: &CommandParams, _| inspect::command(params));
        registry.secrets("command", CommandParams::secrets);
    }
    registry.register("http", Http::new);
    registry.describe("http", || schema_for!(HttpParams).to_value());
    registry.inspect("http", inspect::http);
    registry.secrets("http", HttpParams::secrets);
}
