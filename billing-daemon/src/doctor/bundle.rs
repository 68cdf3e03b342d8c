//! What a person who helps needs to see, in one folder, without any secret.

use std::{fs, io, path::Path};

use serde::Serialize;

use crate::database_url::{DatabaseUrl, MASK};

/// A folder of text that is scrubbed on its way.
pub(crate) struct Bundle<'a> {
    folder: &'a Path,
    secrets: Vec<String>,
}

impl<'a> Bundle<'a> {
    /// A new folder, which nobody else may enter.
    pub(crate) fn create(folder: &'a Path, url: Option<&DatabaseUrl>) -> io::Result<Self> {
        fs::create_dir(folder)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        }
        Ok(Self { folder, secrets: url.map(DatabaseUrl::secrets).unwrap_or_default() })
    }

    /// Adds a file of text.
    pub(crate) fn text(&self, name: &str, text: &str) -> io::Result<()> {
        fs::write(self.folder.join(name), scrubbed(text, &self.secrets))
    }

    /// Adds a file of JSON.
    pub(crate) fn json(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        self.text(name, &serde_json::to_string_pretty(value)?)
    }
}

/// `text` without the secrets that are known, without the password of any URL, and without the value of any setting whose name
/// says that it is one.
fn scrubbed(text: &str, secrets: &[String]) -> String {
    let known = secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, MASK));
    known.split_inclusive('\n').map(|line| without_setting(&without_password(line))).collect()
}

/// `scheme://user:password@` without the password.
fn without_password(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown += before;
        let end = after.find([' ', '"', '\'', '/', '\n', ',', ')', '`']).unwrap_or(after.len());
        let (authority, tail) = after.split_at(end);
        match authority.rfind('@').and_then(|at| Some((authority[..at].find(':')?, at))) {
            Some((colon, at)) => {
                shown += &authority[..=colon];
                shown += MASK;
                shown += &authority[at..];
            }
            None => shown += authority,
        }
        rest = tail;
    }
    shown + rest
}

fn without_setting(line: &str) -> String {
    let Some((name, value)) = line.split_once(['=', ':']) else { return line.to_owned() };
    let name_says_so = {
        let name = name.to_ascii_lowercase();
        ["password", "passwd", "secret", "token", "api-key", "api_key", "apikey"]
            .iter()
            .any(|word| name.contains(word))
    };
    // A comment or a sentence with the word in it has no value to hide.
    let is_setting = !name.trim_start().starts_with('#') && !name.trim().contains(' ');
    if !name_says_so || !is_setting {
        return line.to_owned();
    }
    let end = if value.ends_with('\n') { "\n" } else { "" };
    let comma = if value.trim_end().ends_with(',') { "," } else { "" };
    format!("{}{} \"{MASK}\"{comma}{end}", name, &line[name.len()..=name.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_in_a_bundle() {
        for (text, shown) in [
            ("url = \"postgres://a:pw@db/x\"", "url = \"postgres://a:***@db/x\""),
            ("see https://example.com/a:b@c", "see https://example.com/a:b@c"),
            ("two redis://:pw@h/0, and http://u:p@h", "two redis://:***@h/0, and http://u:***@h"),
            ("smtp-password = \"x\"\nnext = 1\n", "smtp-password = \"***\"\nnext = 1\n"),
            ("  \"api_token\": \"x\",\n", "  \"api_token\": \"***\",\n"),
            ("# the password = is elsewhere", "# the password = is elsewhere"),
            ("known abc", "known ***"),
        ] {
            assert_eq!(scrubbed(text, &["abc".to_owned()]), shown);
        }
    }
}
