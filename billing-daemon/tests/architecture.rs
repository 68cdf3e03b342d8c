//! The rooms of the crates and which of them may import which: a module imports only rooms below it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Each room of billing-daemon with the rooms that it may import, besides itself.
const DAEMON: [(&str, &[&str]); 23] = [
    ("escape", &[]),
    ("format", &[]),
    ("exit", &["escape"]),
    ("plugins", &[]),
    ("host", &[]),
    ("config", &[]),
    ("telemetry", &["config", "host", "escape"]),
    ("panel_database", &["config", "exit"]),
    ("holds", &["exit", "panel_database"]),
    ("charges", &["exit", "panel_database", "format"]),
    ("subjects", &["exit", "panel_database", "escape"]),
    ("prepaid", &["format"]),
    ("status", &["panel_database", "holds", "subjects", "config", "exit", "format", "escape"]),
    ("service_manager", &["host"]),
    ("service_install", &["host", "exit"]),
    ("http", &["status", "panel_database", "telemetry", "config", "host", "exit", "format"]),
    (
        "console",
        &[
            "http",
            "status",
            "charges",
            "holds",
            "prepaid",
            "subjects",
            "panel_database",
            "telemetry",
            "config",
            "host",
            "exit",
            "format",
        ],
    ),
    (
        "runtime",
        &[
            "console",
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
            "charges",
            "console",
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
            "prepaid",
            "subjects",
        ],
    ),
    ("lib", &["console", "commands", "plugins", "exit", "service_manager"]),
    ("main", &["lib", "plugins"]),
];

/// The rooms of billing-jobs from bottom to top. A module imports only rooms of the same line and of the lines above.
const JOBS: &[&[&str]] = &[
    &["currency", "hold", "job_names", "money", "panel", "params", "period", "price"],
    &[
        "fault_injection",
        "metrics",
        "prepaid::rules",
        "prepaid::runway",
        "prepaid::window",
        "restore_detection::note",
        "uncharged",
    ],
    &["prepaid::decide"],
    &["prepaid::endpoint", "prepaid::event_type", "prepaid::params"],
    &["restore_detection::halt"],
    &["restore_detection"],
    &["billing::findings", "billing::id", "billing::panel_time", "billing::totals"],
    &["daemon_status", "spans"],
    &["panel_guard", "services"],
    &["billing::approvals", "billing::model", "billing::refusals", "billing::spike"],
    &["billing::error", "billing::settings"],
    &["billing::batch_sizing", "billing::decide", "billing::fencing", "billing::run_details", "billing::sql"],
    &["billing::read", "billing::spend_limit", "billing::summary", "billing::transaction"],
    &["billing::faulty"],
    &["billing::post", "billing::run_context"],
    &["billing::deleted", "billing::range", "billing::seen_rates"],
    &["billing::batch"],
    &["billing::fleet_run", "billing::spike_guard"],
    &["billing::biller"],
    &["billing::job", "billing::transfer"],
    &["prepaid::assessment", "prepaid::sql"],
    &["prepaid::event"],
    &["audit", "heartbeat", "may_bill", "prepaid", "prune_history", "stale_daemons"],
    &["lib", "billing"],
];

/// The rooms of billing-scheduler, in the same order.
const SCHEDULER: &[&[&str]] = &[
    &["blocking", "clock", "duration", "function", "job", "mask", "registry"],
    &["runtime::interner", "runtime::store"],
    &["runtime::decide"],
    &[
        "runtime::control",
        "runtime::events",
        "runtime::executor",
        "runtime::middleware",
        "runtime::spans",
        "runtime::store_clock",
    ],
    &["runtime::surroundings"],
    &["runtime::queue"],
    &["runtime::engine"],
    &["runtime::memory_queue", "runtime::memory_store", "runtime::signals"],
    &["runtime::running"],
    &["runtime::builder"],
    &["runtime::testing"],
    &["conformance"],
    &["lib", "runtime"],
];

/// The rooms of billing-store, in the same order.
const STORE: &[&[&str]] = &[
    &["columns", "fault_injection", "sync"],
    &["error_class"],
    &["database_url", "server_list"],
    &["connection_check", "transaction"],
    &["audit_log", "connector", "dialect"],
    &["connection", "database", "rows", "statements"],
    &["control", "prune_runs", "store"],
    &["queue"],
    &["migrations"],
    &["lib"],
];

/// Under the feature `runtime` a registry holds middleware.
const EXCEPTION: (&str, &str) = ("registry", "runtime::middleware");

/// A crate's modules: the text of each without unit tests and comments, by the module's path.
struct Modules(BTreeMap<String, String>);

impl Modules {
    /// Reads the crate in a folder next to this one; none in a package that was published alone.
    fn read(folder: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join(folder).join("src");
        let mut files = Vec::new();
        sources(&root, &mut files).ok()?;
        let module = |file: &PathBuf| {
            let path = file.strip_prefix(&root).expect("it is below").with_extension("");
            let names: Vec<_> = path.iter().map(|name| name.to_string_lossy().into_owned()).collect();
            let path = names.join("::");
            path.strip_suffix("::mod").map(str::to_owned).unwrap_or(path)
        };
        let is_test =
            |path: &str| path.ends_with("tests") || path.contains("testing") || path.contains("tests::");
        let text = |file| product(&fs::read_to_string(file).expect("sources are text"));
        let modules = files.iter().map(|file| (module(file), text(file)));
        Some(Self(modules.filter(|(path, _)| !is_test(path)).collect()))
    }

    /// The module that defines what `path` names, also through re-exports.
    fn defining(&self, path: &str) -> String {
        let has_children = |module: &str| {
            module == "lib" || self.0.keys().any(|other| other.starts_with(&format!("{module}::")))
        };
        let (mut module, mut rest) = ("lib".to_owned(), path);
        while let Some(next) = rest.split("::").next().filter(|next| !next.is_empty()) {
            let child = child(&module, next);
            if self.0.contains_key(&child) {
                module = child;
                rest = rest.strip_prefix(next).expect("it begins so").trim_start_matches("::");
            } else {
                let imports = if has_children(&module) { self.imports(&module) } else { Vec::new() };
                let exported = imports
                    .into_iter()
                    .find(|import| import.name == next && import.path != format!("{module}::{next}"));
                return exported.map_or(module, |import| self.defining(&import.path));
            }
        }
        module
    }

    /// What the module `of` imports from its crate.
    fn imports(&self, of: &str) -> Vec<Import> {
        let text = &self.0[of];
        let mut imports = Vec::new();
        for (at, line) in starts_of_paths(text) {
            for (path, name) in expanded(&text[at..]) {
                imports.extend(self.absolute(of, &path).map(|path| Import { line, path, name }));
            }
        }
        imports
    }

    /// The path from the root of the crate; none for a path into another crate.
    fn absolute(&self, of: &str, path: &str) -> Option<String> {
        let first = path.split("::").next().unwrap_or_default();
        if first == "crate" {
            return Some(path.strip_prefix("crate::")?.to_owned());
        }
        let (mut base, mut rest) = (of.to_owned(), path);
        if let Some(inside) = rest.strip_prefix("self::") {
            rest = inside;
        } else if first != "super" {
            // Without a prefix only a child of this module is meant.
            return self.0.contains_key(&child(of, first)).then(|| child(of, path));
        }
        while let Some(above) = rest.strip_prefix("super::") {
            base = base.rsplit_once("::").map_or("lib", |(parent, _)| parent).to_owned();
            rest = above;
        }
        Some(child(&base, rest))
    }
}

struct Import {
    line: usize,
    path: String,
    /// What it is called here.
    name: String,
}

fn child(module: &str, name: &str) -> String {
    if module == "lib" { name.to_owned() } else { format!("{module}::{name}") }
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Where paths begin that may belong to this crate, with their lines: after `use`, and at `crate::` and `super::`.
fn starts_of_paths(text: &str) -> Vec<(usize, usize)> {
    let mut starts = Vec::new();
    let mut end_of_use = 0;
    for (at, _) in text.match_indices(|c: char| c.is_alphabetic()) {
        let before = &text[..at];
        let inside = before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | ':'));
        if inside || before.ends_with("(in ") || before.ends_with('"') || at < end_of_use {
            continue;
        }
        let rest = &text[at..];
        let line = before.matches('\n').count() + 1;
        // `super` of a module inside a file is this file.
        let is_nested = before.ends_with("    ");
        if let Some(path) = rest.strip_prefix("use ") {
            end_of_use = at + path.find(';').map_or(0, |end| end + "use ".len());
            if !(is_nested && path.starts_with("super::")) {
                starts.push((at + "use ".len(), line));
            }
        } else if rest.starts_with("crate::") || rest.starts_with("super::") {
            starts.push((at, line));
        }
    }
    starts
}

/// The paths at the beginning of `text`, each with its last name or its alias.
fn expanded(text: &str) -> Vec<(String, String)> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let (path, rest) = text.split_at(end);
    let Some(list) = rest.strip_prefix('{') else {
        let path = path.trim_end_matches(':');
        let alias = rest.strip_prefix(" as ").map(identifier);
        let name = path.rsplit("::").next().unwrap_or_default().to_owned();
        return vec![(path.to_owned(), alias.unwrap_or(name))];
    };
    let mut paths = Vec::new();
    let (mut depth, mut begins) = (0, true);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            c if begins && !c.is_whitespace() => {
                let joined = |(inner, name)| match inner {
                    inner if inner == "self" => (path.trim_end_matches(':').to_owned(), name),
                    inner => (format!("{path}{inner}"), name),
                };
                paths.extend(expanded(&list[at..]).into_iter().map(joined));
                begins = false;
            }
            _ => {}
        }
    }
    paths
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The text without its unit tests, which may use other rooms to build what they check, and without comments.
fn product(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code = code.split("#[cfg(test)]\npub(super) mod tests").next().unwrap_or_default();
    code.lines()
        .map(|line| if line.trim_start().starts_with("//") { "" } else { line })
        .collect::<Vec<_>>()
        .join("\n")
}

/// The room of a module: the longest of `rooms` that contains it.
fn room<'a>(rooms: &[&'a str], module: &str) -> Option<&'a str> {
    let contains = |room: &&&str| module == **room || module.starts_with(&format!("{room}::"));
    rooms.iter().filter(contains).max_by_key(|room| room.len()).copied()
}

/// Asserts that each module of a crate imports only what `allows`.
#[track_caller]
fn check(folder: &str, rooms: &[&str], allows: impl Fn(&str, &str) -> bool) {
    let Some(modules) = Modules::read(folder) else { return };
    assert!(modules.0.len() > rooms.len() / 2, "{} modules in {folder}", modules.0.len());
    let mut wrong = Vec::new();
    for module in modules.0.keys() {
        let Some(from) = room(rooms, module) else {
            wrong.push(format!("{module}: its room is not in the list"));
            continue;
        };
        for Import { line, path, .. } in modules.imports(module) {
            let to = room(rooms, &modules.defining(&path)).unwrap_or("lib");
            if from != to && !allows(from, to) {
                wrong.push(format!("{folder}, {module}:{line}: room {from} must not import room {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[track_caller]
fn check_layers(folder: &str, layers: &[&[&str]], exceptions: &[(&str, &str)]) {
    let rooms: Vec<&str> = layers.iter().copied().flatten().copied().collect();
    let layer = |room: &str| layers.iter().position(|layer| layer.contains(&room));
    check(folder, &rooms, |from, to| layer(to) <= layer(from) || exceptions.contains(&(from, to)));
}

#[test]
fn daemon_imports_only_rooms_below() {
    let rooms: Vec<&str> = DAEMON.iter().map(|(room, _)| *room).collect();
    let allowed: BTreeMap<_, _> = DAEMON.into_iter().collect();
    check("billing-daemon", &rooms, |from, to| allowed[from].contains(&to));
}

#[test]
fn jobs_import_only_rooms_below() {
    check_layers("billing-jobs", JOBS, &[]);
}

#[test]
fn scheduler_imports_only_rooms_below() {
    check_layers("billing-scheduler", SCHEDULER, &[EXCEPTION]);
}

#[test]
fn store_imports_only_rooms_below() {
    check_layers("billing-store", STORE, &[]);
}

#[test]
fn paths_expand_lists_and_aliases() {
    let text = "use crate::{exit::{Exit, self}, runtime as r};\nlet x = crate::http::y(self_crate::no);";
    let paths: Vec<_> = starts_of_paths(text)
        .into_iter()
        .flat_map(|(at, line)| expanded(&text[at..]).into_iter().map(move |(path, name)| (line, path, name)))
        .collect();
    let expected = [
        (1, "crate::exit::Exit", "Exit"),
        (1, "crate::exit", "self"),
        (1, "crate::runtime", "r"),
        (2, "crate::http::y", "y"),
    ];
    assert_eq!(paths, expected.map(|(line, path, name)| (line, path.to_owned(), name.to_owned())));
}
