//! What is documented and not built yet: refused by name, never ignored. Building a feature deletes
//! its row here.

use crate::manifest::{Build, Delivery, Manifest};
use crate::problem::Problem;
use crate::schema::{pattern_of, shown_path};
use crate::tree::{Place, join, shorten};

/// A key whose feature is missing. A row for a table stands for every key in it.
struct Row {
    /// As in [`crate::schema::KEYS`].
    key: &'static str,
    /// The only value, as TOML, that already does what it says; empty if none does.
    only: &'static str,
    /// What to do instead.
    fix: &'static str,
}

const fn row(key: &'static str, only: &'static str, fix: &'static str) -> Row {
    Row { key, only, fix }
}

const USE_WASM: &str = "build a component and write wasm = \"app.wasm\"";
const USE_ARCHIVE: &str =
    "save the image to a file and write image = \"docker-archive:shop.tar\" or \"oci-archive:…\"";
const REMOVE: &str = "remove it";

const NOT_YET: &[Row] = &[
    row("build.dockerfile", "", USE_WASM),
    row("build.image", "", USE_ARCHIVE),
    row("runtime.type", "\"wasm-http\"", REMOVE),
    row("runtime.command", "", REMOVE),
    row("runtime.port", "8080", REMOVE),
    row("runtime.health.path", "", REMOVE),
    row("runtime.cpus", "", REMOVE),
    row("runtime.volume.snapshots", "\"never\"", REMOVE),
    row("events.subscribe", "[]", REMOVE),
    row("events.emit", "[]", REMOVE),
    row("events.path", "\"/.tabbify/events\"", REMOVE),
    row("release.command", "", REMOVE),
    row("schedule[]", "", REMOVE),
    row("port[]", "", REMOVE),
    row("deploy[].runtime", "\"wasm-http\"", REMOVE),
];

/// What is refused above and built for the image of a file: the key, and a value that already does what it
/// says; empty if all do.
const OF_ARCHIVES: &[(&str, &str)] = &[
    ("build.image", ""),
    ("runtime.type", "\"docker\""),
    ("runtime.type", "\"firecracker\""),
    ("runtime.command", ""),
    ("runtime.port", ""),
    ("runtime.health.path", ""),
    ("runtime.cpus", ""),
    ("port[]", ""),
    ("deploy[].runtime", "\"docker\""),
    ("deploy[].runtime", "\"firecracker\""),
];

/// Every key of a valid manifest whose feature is not built yet, in the order of the lines.
#[must_use]
pub fn not_supported_yet(manifest: &Manifest) -> Vec<Problem> {
    let mut problems = Vec::new();
    let is_archive = matches!(manifest.build, Some(Build::Archive { .. }));
    let built = |key: &str, value: &str| {
        let does =
            |(built, only): &(&str, &str)| *built == key && (only.is_empty() || *only == value);
        is_archive && OF_ARCHIVES.iter().any(does)
    };
    for (path, entry) in &manifest.written.entries {
        let pattern = pattern_of(path);
        let hit = |row: &&Row| row.key == pattern && row.only != entry.value;
        let Some(row) = NOT_YET.iter().find(hit) else {
            continue;
        };
        if built(&pattern, &entry.value) {
            continue;
        }
        problems.push(Problem {
            file: manifest.written.file.clone(),
            line: entry.place.line,
            column: entry.place.column,
            key: shown_path(path),
            message: format!("{} is not supported yet", subject(row, &entry.value)),
            fix: row.fix.to_owned(),
        });
    }
    problems.extend(secrets(manifest));
    problems.sort_by_key(|problem| (problem.line, problem.column));
    problems
}

/// What is missing of secrets: a component has no files that are gone with its runner.
fn secrets(manifest: &Manifest) -> Vec<Problem> {
    let written = &manifest.written;
    let problem = |path: &str, what: &str, fix: &str| {
        let place = written.entries.get(path).map(|entry| entry.place);
        let place = place.unwrap_or(Place::START);
        Problem {
            file: written.file.clone(),
            line: place.line,
            column: place.column,
            key: shown_path(path),
            message: format!("{what} is not supported yet"),
            fix: fix.to_owned(),
        }
    };
    let is_component = matches!(manifest.build, Some(Build::Wasm { .. }) | None);
    if !is_component {
        return Vec::new();
    }
    let files = manifest.secrets.iter();
    let files = files.filter(|(_, secret)| secret.delivery == Delivery::File);
    files
        .map(|(variable, secret)| {
            let path = join("secrets", variable);
            let fix = format!("write {variable} = {:?}, for its value", secret.name);
            problem(&path, &format!("{path} as a file"), &fix)
        })
        .collect()
}

/// `[network] egress`, with the value where another one would do.
fn subject(row: &Row, value: &str) -> String {
    let (table, key) = row.key.split_once('.').unwrap_or((row.key, ""));
    let table = match table.strip_suffix("[]") {
        Some(name) => format!("[[{name}]]"),
        None => format!("[{table}]"),
    };
    match (key, row.only) {
        ("", _) => table,
        (_, "" | "[]" | "{}") => format!("{table} {key}"),
        _ => format!("{table} {key} = {}", shorten(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::KEYS;

    /// Whether a row refuses a key: by its name, or with the table that it is in.
    fn refuses(row: &Row, key: &str) -> bool {
        key.strip_prefix(row.key)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// A misspelled row would let its feature pass unnoticed.
    #[test]
    fn every_row_is_a_key_or_a_table_of_keys() {
        for row in NOT_YET {
            assert!(KEYS.iter().any(|key| refuses(row, key)), "{}", row.key);
        }
    }

    #[test]
    fn what_an_archive_may_say_is_refused_to_others() {
        for (key, _) in OF_ARCHIVES {
            assert!(NOT_YET.iter().any(|row| row.key == *key), "{key}");
        }
    }

    /// Together with the rows above, this is every documented key: a new one must go to either.
    #[test]
    fn every_other_key_is_supported() {
        let refused = |key: &str| NOT_YET.iter().any(|row| refuses(row, key));
        let supported: Vec<&str> = KEYS.iter().copied().filter(|key| !refused(key)).collect();
        let expected = [
            "app.name",
            "app.description",
            "app.access",
            "app.id",
            "build.wasm",
            "build.context",
            "build.command",
            "runtime.health.within",
            "runtime.lifecycle",
            "runtime.idle_timeout",
            "runtime.stop_timeout",
            "runtime.memory",
            "runtime.replicas",
            "runtime.volume.mount",
            "runtime.volume.size",
            "env.*",
            "secrets.*",
            "secrets.*.name",
            // But for a file, which `secrets` refuses above.
            "secrets.*.as",
            "network.egress",
            "deploy[].supervisor",
            "deploy[].env.*",
        ];
        assert_eq!(supported, expected);
    }
}
