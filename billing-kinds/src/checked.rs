//! Validation of parameters: rejects values that no server or program can accept.

use std::collections::BTreeMap;

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, MapAccess, Visitor},
};
use ureq::http::{HeaderName, HeaderValue, Uri, uri::InvalidUri};

use crate::Secret;

/// Why a text is not a valid URL for a request. The message does not contain the text, which may contain a secret.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// It cannot be parsed.
    #[error("invalid URL: {0}")]
    Malformed(#[from] InvalidUri),
    /// The scheme is missing or is not http or https.
    #[error("invalid URL: it must begin with http:// or https://")]
    Scheme,
    /// There is no host after the scheme.
    #[error("invalid URL: the host is missing")]
    Host,
    /// The port is not a number from 1 to 65535.
    #[error("invalid URL: the port must be a number from 1 to 65535")]
    Port,
}

/// Returns an error if `text` is not a valid URL for a request.
pub fn check_url(text: &str) -> Result<(), UrlError> {
    url(text).map(drop)
}

/// Parses the URL of a request.
pub(crate) fn url(text: &str) -> Result<Uri, UrlError> {
    let uri: Uri = text.parse()?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(UrlError::Scheme);
    }
    let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or(UrlError::Host)?;
    let without_user = authority.as_str().rsplit('@').next().unwrap_or_default();
    // An IPv6 address in brackets contains colons.
    let port = without_user.rsplit(']').next().and_then(|rest| rest.split_once(':'));
    match port {
        Some((_, port)) if !port.parse::<u16>().is_ok_and(|port| port > 0) => Err(UrlError::Port),
        _ => Ok(uri),
    }
}

/// Deserializes the URL of a request. A URL from the environment or a file is validated when it is read.
pub(crate) fn secret_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    let secret = Secret::deserialize(deserializer)?;
    match &secret {
        Secret::Text(text) => url(text).map(drop).map_err(de::Error::custom)?,
        Secret::Env(_) | Secret::File(_) | Secret::Credential(_) => {}
    }
    Ok(secret)
}

/// Deserializes an optional URL.
#[cfg(feature = "pings")]
pub(crate) fn optional_secret_url<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Secret>, D::Error> {
    secret_url(deserializer).map(Some)
}

/// Deserializes the headers of a request.
pub(crate) fn headers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Secret>, D::Error> {
    deserializer.deserialize_any(Entries { check: header })
}

/// Deserializes the environment of a program.
#[cfg(unix)]
pub(crate) fn environment<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Secret>, D::Error> {
    deserializer.deserialize_any(Entries { check: variable })
}

type Known = BTreeMap<String, Secret>;
type Check = fn(&str, &Secret, &Known) -> Result<(), String>;

/// Checks a header, also against the headers before it.
fn header(name: &str, value: &Secret, known: &Known) -> Result<(), String> {
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
        format!("`{}` is not a valid header name: use letters, digits and -", name.escape_debug())
    })?;
    if ["content-length", "transfer-encoding"].contains(&parsed.as_str()) {
        return Err(format!("`{name}` is computed from the body: remove it"));
    }
    if let Some(other) = known.keys().find(|other| other.eq_ignore_ascii_case(name)) {
        return Err(format!("`{name}` and `{other}` are the same header: remove one"));
    }
    match value {
        Secret::Text(text) if HeaderValue::from_str(text).is_err() => {
            Err("invalid header value: use one line without control characters".to_owned())
        }
        _ => Ok(()),
    }
}

/// Checks an environment variable.
#[cfg(unix)]
fn variable(name: &str, value: &Secret, _: &Known) -> Result<(), String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(format!(
            "`{}` is not a valid variable name: it must not be empty or contain = or NUL",
            name.escape_debug()
        ));
    }
    match value {
        Secret::Text(text) if text.contains('\0') => {
            Err("the value of a variable must not contain NUL".to_owned())
        }
        _ => Ok(()),
    }
}

/// Deserializes a table and checks each entry, so that an error has the path of the entry.
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
