//! The output and the exit code of each command.

mod bill_and_audit;
mod charges;
mod demo;
mod doctor;
mod errors;
mod generated_docs;
mod holds;
pub(crate) mod http;
mod http_limits;
mod output;
mod secrets;
mod service;
mod spike;
mod status;
mod tls;
mod wallets;

use billing_test_support::Ended;
use serde_json::Value;

/// The one line of JSON that a command printed.
#[track_caller]
pub(crate) fn json(ended: &Ended) -> Value {
    assert_eq!(ended.out.len(), 1, "{}", ended.text());
    serde_json::from_str(&ended.out[0]).unwrap_or_else(|error| panic!("{error}: {}", ended.text()))
}

/// The keys of a JSON object, in alphabetical order.
fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}
