//! The secrets within a configured value, in the pieces that a program or a server may print.

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
use billing_scheduler::serde_json;
use percent_encoding::percent_decode_str;
use ureq::http::Uri;

use crate::Secret;

/// Variables and headers whose values are public, unless they come from the environment or a file.
const PUBLIC: [&str; 18] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "content-encoding",
    "content-language",
    "content-type",
    "home",
    "lang",
    "language",
    "logname",
    "path",
    "pwd",
    "shell",
    "term",
    "tmpdir",
    "tz",
    "user-agent",
];
/// Values that are too common to mask.
const WORDS: [&str; 4] = ["true", "false", "none", "null"];
/// The minimum length of a piece of a value that is masked alone.
const SHORTEST_PIECE: usize = 8;
/// The minimum length of a URL's user that is treated as an API key.
const SHORTEST_KEY: usize = 16;

/// Returns the secrets in `value`, which was read from `source`, of the variable or header `name`.
pub(crate) fn of_entry(name: &str, source: &Secret, value: &str) -> Vec<String> {
    if matches!(source, Secret::Text(_)) {
        let name = name.to_ascii_lowercase();
        let is_public = PUBLIC.contains(&name.as_str()) || name.starts_with("lc_");
        if is_public || WORDS.contains(&value.to_ascii_lowercase().as_str()) {
            return Vec::new();
        }
    }
    let mut secrets = vec![value.to_owned()];
    if let Some(uri) = value.parse::<Uri>().ok().filter(|uri| uri.scheme().is_some()) {
        secrets.extend(within_url(&uri));
    } else {
        // `Bearer TOKEN`, `session=TOKEN; path=/`: the server may print the token alone.
        for word in value.split([' ', ';', ',']) {
            secrets.extend(pieces(word.split_once('=').map_or(word, |(_, value)| value)));
            secrets.extend(pieces(word));
        }
        secrets.extend(value.strip_prefix("Basic ").and_then(basic).into_iter().flatten());
    }
    secrets
}

/// Returns the secrets in a URL: the path with the query, the values of the query, and the password.
pub(crate) fn of_url(url: &str) -> Vec<String> {
    let Ok(uri) = url.parse::<Uri>() else { return vec![url.to_owned()] };
    let mut secrets = within_url(&uri);
    secrets.extend(uri.path_and_query().map(|target| target.as_str().to_owned()));
    secrets
}

/// Returns the values of a query, the password, and a user that is long enough for an API key.
fn within_url(uri: &Uri) -> Vec<String> {
    let mut secrets: Vec<_> = uri.query().into_iter().flat_map(of_form).collect();
    let user = uri.authority().and_then(|authority| authority.as_str().rsplit_once('@'));
    if let Some((user, _)) = user {
        match user.split_once(':') {
            Some((_, password)) => secrets.extend([user.to_owned(), decoded(password)]),
            None => secrets.extend((user.len() >= SHORTEST_KEY).then(|| decoded(user))),
        }
    }
    secrets
}

/// Returns the secrets in a body. A body that is written in the configuration is not secret.
pub(crate) fn of_body(source: &Secret, body: &str) -> Vec<String> {
    if matches!(source, Secret::Text(_)) {
        return Vec::new();
    }
    let mut secrets = vec![body.to_owned()];
    match serde_json::from_str(body) {
        Ok(value) => of_json(&value, &mut secrets),
        Err(_) => secrets.extend(of_form(body)),
    }
    secrets
}

fn of_json(value: &serde_json::Value, secrets: &mut Vec<String>) {
    match value {
        serde_json::Value::String(text) => secrets.extend(pieces(text)),
        serde_json::Value::Array(values) => values.iter().for_each(|value| of_json(value, secrets)),
        serde_json::Value::Object(fields) => fields.values().for_each(|value| of_json(value, secrets)),
        _ => {}
    }
}

/// Returns the values of `a=b&c=d`.
fn of_form(text: &str) -> impl Iterator<Item = String> {
    let values = text.split('&').filter_map(|pair| pair.split_once('='));
    values.map(|(_, value)| decoded(&value.replace('+', " ")))
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn pieces(text: &str) -> Option<String> {
    let text = text.trim_matches(['"', '\'']);
    (text.chars().count() >= SHORTEST_PIECE).then(|| text.to_owned())
}

/// Decodes the credentials of `Basic` and returns `user:password` and the password.
fn basic(encoded: &str) -> Option<[String; 2]> {
    let bytes = BASE64_STANDARD_NO_PAD.decode(encoded.trim().trim_end_matches('=')).ok()?;
    let user = String::from_utf8(bytes).ok()?;
    let password = user.split_once(':')?.1.to_owned();
    Some([user, password])
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn text() -> Secret {
        Secret::Text(String::new())
    }

    fn file() -> Secret {
        Secret::File(PathBuf::new())
    }

    #[track_caller]
    fn check(found: &[String], expected: &[&str]) {
        for secret in expected {
            assert!(found.iter().any(|found| found == secret), "no {secret} in {found:?}");
        }
        assert!(found.is_empty() == expected.is_empty(), "{found:?}");
    }

    #[test]
    fn entries_are_split_into_secrets() {
        for (name, source, value, expected) in [
            ("TOKEN", text(), "s3cret", &["s3cret"][..]),
            ("Authorization", text(), "Bearer abcdefgh", &["Bearer abcdefgh", "abcdefgh"]),
            (
                "Authorization",
                text(),
                "Basic dXNlcjpzM2NyZXQ=",
                &["dXNlcjpzM2NyZXQ=", "user:s3cret", "s3cret"],
            ),
            ("Cookie", text(), "id=abcdefgh; path=/", &["abcdefgh"]),
            ("DATABASE_URL", text(), "postgres://me:p%40ss@db/x", &["p@ss", "me:p%40ss"]),
            ("API", text(), "https://0123456789abcdef@api/v1", &["0123456789abcdef"]),
            ("PATH", text(), "/usr/bin:/bin", &[]),
            ("Content-Type", text(), "application/json", &[]),
            ("DEBUG", text(), "True", &[]),
            ("PATH", file(), "/usr/bin:/bin", &["/usr/bin:/bin"]),
            ("DEBUG", file(), "true", &["true"]),
        ] {
            check(&of_entry(name, &source, value), expected);
        }
    }

    #[test]
    fn urls_and_bodies_are_split_into_secrets() {
        check(
            &of_url("https://me:p%40ss@h/hook/T0?token=a+b%21"),
            &["/hook/T0?token=a+b%21", "a b!", "p@ss"],
        );
        check(&of_url("not a url"), &["not a url"]);
        check(&of_body(&text(), "s3cret-token"), &[]);
        check(&of_body(&file(), r#"{"a": ["s3cret-token"]}"#), &["s3cret-token"]);
        check(&of_body(&file(), "a=1&b=s3cret+token"), &["s3cret token"]);
    }
}
