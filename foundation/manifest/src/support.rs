//! What is documented and not built yet: refused by name, never ignored. Building a feature deletes
//! its row here.

use crate::manifest::Manifest;
use crate::problem::Problem;
use crate::schema::{pattern_of, shown_path};
use crate::tree::shorten;

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
const REMOVE: &str = "remove it";

const NOT_YET: &[Row] = &[
    row("build.dockerfile", "", USE_WASM),
    row("build.image", "", USE_WASM),
    row(
        "runtime.type",
        "\"wasm-http\"",
        "write type = \"wasm-http\" or remove it",
    ),
    row("runtime.command", "", REMOVE),
    row("runtime.port", "8080", REMOVE),
    row("runtime.health.path", "", REMOVE),
    row(
        "runtime.lifecycle",
        "\"always_on\"",
        "write lifecycle = \"always_on\" or remove it",
    ),
    row("runtime.idle_timeout", "", REMOVE),
    row("runtime.cpus", "", REMOVE),
    row("runtime.replicas", "1", "write replicas = 1 or remove it"),
    row("runtime.volume", "", REMOVE),
    row("secrets", "{}", REMOVE),
    row("network.egress", "[]", REMOVE),
    row("events.subscribe", "[]", REMOVE),
    row("events.emit", "[]", REMOVE),
    row("events.path", "\"/.tabbify/events\"", REMOVE),
    row("release.command", "", REMOVE),
    row("schedule[]", "", REMOVE),
    row("port[]", "", REMOVE),
    row(
        "deploy[].supervisor",
        "\"any\"",
        "write supervisor = \"any\" or remove the block",
    ),
    row("deploy[].runtime", "\"wasm-http\"", REMOVE),
    row("deploy[].env", "{}", REMOVE),
];

/// Every key of a valid manifest whose feature is not built yet, in the order of the lines.
#[must_use]
pub fn not_supported_yet(manifest: &Manifest) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, entry) in &manifest.written.entries {
        let pattern = pattern_of(path);
        let hit = |row: &&Row| row.key == pattern && row.only != entry.value;
        let Some(row) = NOT_YET.iter().find(hit) else {
            continue;
        };
        problems.push(Problem {
            file: manifest.written.file.clone(),
            line: entry.place.line,
            column: entry.place.column,
            key: shown_path(path),
            message: format!("{} is not supported yet", subject(row, &entry.value)),
            fix: row.fix.to_owned(),
        });
    }
    problems.sort_by_key(|problem| (problem.line, problem.column));
    problems
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
            "runtime.stop_timeout",
            "runtime.memory",
            "env.*",
        ];
        assert_eq!(supported, expected);
    }
}
