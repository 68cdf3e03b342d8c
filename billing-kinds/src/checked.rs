//! Parameters that are refused where they can never work, whatever a server or a program makes of them.

use std::collections::BTreeMap;

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, MapAccess, Visitor},
};
use ureq::http::{HeaderName, HeaderValue, Uri, uri::InvalidUri};

use crate::Secret;

/// Why a text is not a URL to which a request can be sent. The text is not shown: it may hold a secret.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// It cannot be parsed.
    #[error("invalid URL: {0}")]
    Malformed(#[from] InvalidUri),
    /// The scheme is missing or another one.
    #[error("invalid URL: it must begin with http:// or https://")]
    Scheme,
    /// There is no host after the scheme.
    #[error("invalid URL: it names no host")]
    Host,
    /// The port is not a number from 1 to 65535.
    #[error("invalid URL: the port must be a number from 1 to 65535")]
    Port,
}

/// Checks that a request can be sent to a URL.
pub fn check_url(text: &str) -> Result<(), UrlError> {
    url(text).map(drop)
}

/// Parses a URL to which a request can be sent.
pub(crate) fn url(text: &str) -> Result<Uri, UrlError> {
    let uri: Uri = text.parse()?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(UrlError::Scheme);
    }
    let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or(UrlError::Host)?;
    let without_user = authority.as_str().rsplit('@').next().unwrap_or_default();
    // In brackets there are colons as well.
    let port = without_user.rsplit(']').next().and_then(|rest| rest.split_once(':'));
    match port {
        Some((_, port)) if !port.parse::<u16>().is_ok_and(|port| port > 0) => Err(UrlError::Port),
        _ => Ok(uri),
    }
}

/// Reads a place to which requests are sent, and refuses one that is written out and is not valid.
pub(crate) fn place<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    let place = Secret::deserialize(deserializer)?;
    match &place {
        Secret::Text(text) => url(text).map(drop).map_err(de::Error::custom)?,
        Secret::Env(_) | Secret::File(_) => {}
    }
    Ok(place)
}

/// The same for one that may be missing.
#[cfg(feature = "pings")]
pub(crate) fn optional_place<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    place(deserializer).map(Some)
}

/// Reads the headers of a request.
pub(crate) fn headers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Secret>, D::Error> {
    deserializer.deserialize_any(Entries { check: header })
}

/// Reads the environment of a program.
#[cfg(unix)]
pub(crate) fn environment<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Secret>, D::Error> {
    deserializer.deserialize_any(Entries { check: variable })
}

type Known = BTreeMap<String, Secret>;
type Check = fn(&str, &Secret, &Known) -> Result<(), String>;

/// Checks a header against those before it.
fn header(name: &str, value: &Secret, known: &Known) -> Result<(), String> {
    let parsed = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| format!("`{}` is not a header name: use letters, digits and -", name.escape_debug()))?;
    if ["content-length", "transfer-encoding"].contains(&parsed.as_str()) {
        return Err(format!("`{name}` follows from the body: remove it"));
    }
    if let Some(other) = known.keys().find(|other| other.eq_ignore_ascii_case(name)) {
        return Err(format!("`{name}` and `{other}` are the same header: remove one"));
    }
    match value {
        Secret::Text(text) if HeaderValue::from_str(text).is_err() => {
            Err("this is not a header value: use one line without control characters".to_owned())
        }
        _ => Ok(()),
    }
}

/// Checks a variable.
#[cfg(unix)]
fn variable(name: &str, value: &Secret, _: &Known) -> Result<(), String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(format!(
            "`{}` is not the name of a variable: it must have characters, and none of them = or NUL",
            name.escape_debug()
        ));
    }
    match value {
        Secret::Text(text) if text.contains('\0') => Err("no variable can contain a NUL".to_owned()),
        _ => Ok(()),
    }
}

/// A table, each entry of which is checked, so that an error names the entry.
struct Entries {
    check: Check,
}

impl<'de> Visitor<'de> for Entries {
    type Value = Known;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a table")
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Known, E> {
        // Without the text, which may be a secret.
        Err(E::invalid_type(de::Unexpected::Other("text"), &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Known, A::Error> {
        let mut known = Known::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(Entry { name: &name, known: &known, check: self.check })?;
            known.insert(name, value);
        }
        Ok(known)
    }
}

struct Entry<'a> {
    name: &'a str,
    known: &'a Known,
    check: Check,
}

impl<'de> DeserializeSeed<'de> for Entry<'_> {
    type Value = Secret;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Secret, D::Error> {
        let value = Secret::deserialize(deserializer)?;
        (self.check)(self.name, &value, self.known).map_err(de::Error::custom)?;
        Ok(value)
    }
}
