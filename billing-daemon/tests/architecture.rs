//! The rooms of the daemon and which of them may import which: a module imports only rooms below it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Each room with the rooms that it may import, besides itself.
const ROOMS: [(&str, &[&str]); 20] = [
    ("escape", &[]),
    ("format", &[]),
    ("exit", &["escape"]),
    ("plugins", &[]),
    ("host", &[]),
    ("config", &[]),
    ("telemetry", &["config", "host", "escape"]),
    ("panel_database", &["config", "exit"]),
    ("holds", &["exit", "panel_database"]),
    ("subjects", &["exit", "panel_database", "escape"]),
    ("status", &["panel_database", "holds", "subjects", "config", "exit", "format", "escape"]),
    ("service_manager", &["host"]),
    ("service_install", &["host", "exit"]),
    ("http", &["status", "panel_database", "telemetry", "config", "host", "exit", "format"]),
    (
        "runtime",
        &[
            "http",
            "status",
            "panel_database",
            "service_manager",
            "telemetry",
            "config",
            "host",
            "plugins",
            "exit",
        ],
    ),
    (
        "doctor",
        &["holds", "status", "panel_database", "telemetry", "config", "host", "exit", "format", "escape"],
    ),
    ("output", &["status", "exit", "format", "escape"]),
    (
        "commands",
        &[
            "output",
            "doctor",
            "runtime",
            "http",
            "status",
            "panel_database",
            "service_manager",
            "service_install",
            "telemetry",
            "config",
            "host",
            "plugins",
            "exit",
            "format",
            "escape",
            "holds",
            "subjects",
        ],
    ),
    ("lib", &["commands", "plugins", "exit", "service_manager"]),
    ("main", &["lib", "plugins"]),
];

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The room of a file under `src`: its first folder, or its name.
fn room(file: &Path) -> String {
    let first = file.iter().next().expect("a file has a name").to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The names after each `crate::` of a text, also in a list in braces.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let line = text[..at].matches('\n').count() + 1;
        let rest = &text[at + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.push((line, identifier(rest)));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (offset, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if begins && !c.is_whitespace() => {
                    found.push((line, identifier(&list[offset..])));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    found
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The text without its unit tests, which may use other rooms to build what they check, and without comments.
fn product(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines()
        .map(|line| if line.trim_start().starts_with("//") { "" } else { line })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn modules_import_only_rooms_below() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed: BTreeMap<_, _> = ROOMS.into_iter().collect();
    let mut files = Vec::new();
    sources(&root, &mut files);
    files.sort();
    assert!(files.len() > 50, "{} files under {}", files.len(), root.display());
    let mut wrong = Vec::new();
    for path in &files {
        let file = path.strip_prefix(&root).expect("it is below");
        if file.file_stem().is_some_and(|name| name == "tests" || name == "testing") {
            continue;
        }
        let from = room(file);
        let Some(rooms) = allowed.get(from.as_str()) else {
            wrong.push(format!("{}: room {from} is not in the list", file.display()));
            continue;
        };
        let text = product(&fs::read_to_string(path).expect("sources are text"));
        for (line, name) in imports(&text) {
            let is_room = allowed.contains_key(name.as_str());
            if is_room && name != from && !rooms.contains(&name.as_str()) {
                wrong.push(format!("{}:{line}: room {from} must not import room {name}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn imports_reads_names_in_braces() {
    let text = "use crate::{exit::{Exit, Failure}, runtime};\nlet x = crate::http::y(self_crate::no);";
    let names: Vec<_> = imports(text).into_iter().collect();
    let expected = [(1, "exit"), (1, "runtime"), (2, "http")].map(|(line, name)| (line, name.to_owned()));
    assert_eq!(names, expected);
}
