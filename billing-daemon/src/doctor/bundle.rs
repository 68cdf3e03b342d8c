//! The support bundle: one archive for a person who helps, without secrets.

use std::{io, ops::Range, path::Path};

use billing_scheduler::{MASK, Mask};
use chrono::{DateTime, Utc};
use flate2::{Compression, GzBuilder, write::GzEncoder};
use serde::Serialize;
use serde_spanned::Spanned;
use tempfile::NamedTempFile;
use toml::de::{DeTable, DeValue};

/// The folder of the files in the archive.
const FOLDER: &str = "billing-daemon-support";

/// Text files for an archive, without secrets.
pub(crate) struct Bundle {
    secrets: Mask,
    files: Vec<(&'static str, String)>,
}

impl Bundle {
    /// An empty bundle of a daemon with these secrets.
    pub(crate) fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        Self { secrets: Mask::new(secrets), files: Vec::new() }
    }

    /// Adds a file of TOML, without the values that jobs pass to programs and servers.
    pub(crate) fn toml(&mut self, name: &'static str, text: &str) {
        let shown = without_values(text);
        let note = "# Left out: it is not valid TOML, so its secrets cannot be recognized.\n";
        self.text(name, shown.as_deref().unwrap_or(note));
    }

    /// Adds a file of text, with every secret masked.
    pub(crate) fn text(&mut self, name: &'static str, text: &str) {
        self.files.push((name, scrubbed(text, &self.secrets)));
    }

    /// Adds a file of JSON, or of the error that prevented it.
    pub(crate) fn json<T: Serialize>(&mut self, name: &'static str, value: &Result<T, String>) {
        let text = match value {
            Ok(value) => serde_json::to_string_pretty(value),
            Err(error) => serde_json::to_string_pretty(&serde_json::json!({ "error": error })),
        };
        // One setting per line: a value is masked by the name at the beginning of its line.
        self.text(name, &text.unwrap_or_else(|error| error.to_string()));
    }

    /// Writes the archive to a new file at `path` that only this user can read; on an error there is no file.
    pub(crate) fn write(self, path: &Path, at: DateTime<Utc>) -> io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut file = NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
        let mut archive = tar::Builder::new(GzBuilder::new().write(&mut file, Compression::default()));
        for (name, text) in &self.files {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o600);
            header.set_size(u64::try_from(text.len()).map_err(io::Error::other)?);
            header.set_mtime(u64::try_from(at.timestamp()).unwrap_or_default());
            archive.append_data(&mut header, format!("{FOLDER}/{name}"), text.as_bytes())?;
        }
        archive.into_inner().and_then(GzEncoder::finish)?.as_file().sync_all()?;
        // Neither an existing file nor the target of a link is overwritten.
        file.persist_noclobber(path).map(drop).map_err(|error| error.error)
    }
}

/// Masks the known secrets, the password of each URL, and the value of each setting with the name of a secret.
fn scrubbed(text: &str, secrets: &Mask) -> String {
    secrets.apply(text).split_inclusive('\n').map(|line| without_setting(&without_password(line))).collect()
}

/// Masks the headers, variables, URLs and bodies that a jobs.toml contains literally; `None` if it cannot be parsed.
fn without_values(text: &str) -> Option<String> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return None;
    }
    let mut spans = Vec::new();
    let jobs = root.get_ref().get("job").and_then(|jobs| jobs.get_ref().as_array());
    for job in jobs.into_iter().flat_map(|jobs| jobs.iter()).filter_map(|job| job.get_ref().as_table()) {
        let params = job.get("params").and_then(|params| params.get_ref().as_table());
        let param = |key: &str| params.and_then(|params| params.get(key));
        ["url", "body"].into_iter().filter_map(param).for_each(|value| written_out(value, &mut spans));
        for entries in [param("headers"), param("environment"), job.get("ping")].into_iter().flatten() {
            match entries.get_ref().as_table() {
                Some(entries) => entries.values().for_each(|value| written_out(value, &mut spans)),
                None => spans.push(entries.span()),
            }
        }
    }
    spans.sort_by_key(|span| span.start);
    let (mut shown, mut at) = (String::new(), 0);
    for span in spans {
        shown += text.get(at..span.start)?;
        shown.extend(["\"", MASK, "\""]);
        at = span.end;
    }
    Some(shown + text.get(at..)?)
}

/// Adds the span of a literal value; a table only names the variable or the file that contains it.
fn written_out(value: &Spanned<DeValue<'_>>, spans: &mut Vec<Range<usize>>) {
    if !value.get_ref().is_table() {
        spans.push(value.span());
    }
}

/// Masks the password in `scheme://user:password@`.
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
    let is_secret = {
        let name = name.to_ascii_lowercase();
        ["password", "passwd", "secret", "token", "api-key", "api_key", "apikey"]
            .iter()
            .any(|word| name.contains(word))
    };
    // A comment or a sentence that contains the word has no value to mask.
    let is_setting = !name.trim_start().starts_with('#') && !name.trim().contains(' ');
    if !is_secret || !is_setting {
        return line.to_owned();
    }
    let end = if value.ends_with('\n') { "\n" } else { "" };
    let comma = if value.trim_end().ends_with(',') { "," } else { "" };
    format!("{}{} \"{MASK}\"{comma}{end}", name, &line[name.len()..=name.len()])
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _};

    use super::*;

    fn written(path: &Path) -> io::Result<()> {
        let mut bundle = Bundle::new(["c4n4ry".to_owned()]);
        bundle.text("b.txt", "known c4n4ry");
        bundle.json("a.json", &Ok(serde_json::json!({ "token": "t0ken", "rows": [1] })));
        bundle.json::<()>("c.json", &Err("no rights of c4n4ry".to_owned()));
        bundle.write(path, DateTime::from_timestamp_secs(1_000).expect("a time"))
    }

    #[test]
    fn bundle_is_a_reproducible_masked_archive() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, other) = (folder.path().join("one.tar.gz"), folder.path().join("other.tar.gz"));
        written(&one).expect("written");
        written(&other).expect("written");
        let read = |path: &Path| fs::read(path).expect("it is there");
        assert_eq!(read(&one), read(&other), "equal content gives equal archives");
        let mut archive =
            tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(&one).expect("it is there")));
        let files: Vec<_> = archive
            .entries()
            .expect("an archive")
            .map(|file| {
                let mut file = file.expect("a file");
                assert_eq!(file.header().mode().expect("a mode"), 0o600);
                let mut text = String::new();
                file.read_to_string(&mut text).expect("text");
                (file.path().expect("a path").display().to_string(), text)
            })
            .collect();
        let expected = [
            ("billing-daemon-support/b.txt", "known ***"),
            ("billing-daemon-support/a.json", "{\n  \"rows\": [\n    1\n  ],\n  \"token\": \"***\"\n}"),
            ("billing-daemon-support/c.json", "{\n  \"error\": \"no rights of ***\"\n}"),
        ];
        assert_eq!(files, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    }

    #[cfg(unix)]
    #[test]
    fn bundle_overwrites_nothing_and_leaves_no_fragment() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("there"), "mine").expect("written");
        symlink(path("there"), path("link")).expect("a link");
        symlink(path("nowhere"), path("dangling")).expect("a link");
        for name in ["there", "link", "dangling"] {
            let error = written(&path(name)).expect_err(name);
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{name}");
        }
        written(&path("missing/one")).expect_err("no folder");
        assert_eq!(fs::read_to_string(path("there")).expect("text"), "mine");
        written(&path("new")).expect("written");
        let mode = fs::metadata(path("new")).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .expect("a folder")
            .map(|file| file.expect("a file").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        assert_eq!(names, ["dangling", "link", "new", "there"]);
    }

    #[test]
    fn bundled_configuration_shows_no_value() {
        for (line, shown) in [
            ("params.url = 'https://h/s3cret'", "params.url = \"***\""),
            ("params.url = \"\"\"\ns3cret\"\"\"", "params.url = \"***\""),
            (
                "params.headers = { A = 's3cret', 'B' = 17 }",
                "params.headers = { A = \"***\", 'B' = \"***\" }",
            ),
            ("params.environment.env = 's3cret' # why", "params.environment.env = \"***\" # why"),
            ("params.body = { env = 'BODY' }", "params.body = { env = 'BODY' }"),
            ("params.argv = ['sh', '-c']", "params.argv = ['sh', '-c']"),
            (
                "ping = { url = 'https://p/s3cret', fail = { file = '/f' }, timeout = '3s' }",
                "ping = { url = \"***\", fail = { file = '/f' }, timeout = \"***\" }",
            ),
        ] {
            let whole = |line: &str| format!("[[job]]\nname = 'a'\n{line}\n[[job]]\nname = 'b'\n");
            assert_eq!(without_values(&whole(line)), Some(whole(shown)));
        }
        assert_eq!(without_values("params.url = 's3cret"), None);
    }

    #[test]
    fn bundled_text_masks_secrets() {
        for (text, shown) in [
            ("url = \"postgres://a:pw@db/x\"", "url = \"postgres://a:***@db/x\""),
            ("see https://example.com/a:b@c", "see https://example.com/a:b@c"),
            ("two redis://:pw@h/0, and http://u:p@h", "two redis://:***@h/0, and http://u:***@h"),
            ("smtp-password = \"x\"\nnext = 1\n", "smtp-password = \"***\"\nnext = 1\n"),
            ("  \"api_token\": \"x\",\n", "  \"api_token\": \"***\",\n"),
            ("# the password = is elsewhere", "# the password = is elsewhere"),
            ("known abcd", "known ***"),
        ] {
            assert_eq!(scrubbed(text, &Mask::new(["abcd"])), shown);
        }
    }
}
