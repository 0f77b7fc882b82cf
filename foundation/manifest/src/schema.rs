//! Every key of today's form, and the check that a file has no other.

use crate::problem::Problems;
use crate::tree::{Node, Place, Table, Value, join, key_text};

/// Every key: `[]` marks blocks, `*` a name that the author chooses.
pub(crate) const KEYS: &[&str] = &[
    "app.name",
    "app.description",
    "app.access",
    "app.id",
    "build.dockerfile",
    "build.image",
    "build.wasm",
    "build.context",
    "build.command",
    "runtime.type",
    "runtime.command",
    "runtime.port",
    "runtime.health.path",
    "runtime.health.within",
    "runtime.lifecycle",
    "runtime.idle_timeout",
    "runtime.stop_timeout",
    "runtime.memory",
    "runtime.cpus",
    "runtime.replicas",
    "runtime.volume.mount",
    "runtime.volume.size",
    "runtime.volume.snapshots",
    "env.*",
    "secrets.*",
    "secrets.*.name",
    "secrets.*.as",
    "network.egress",
    "events.subscribe",
    "events.emit",
    "events.path",
    "release.command",
    "schedule[].cron",
    "schedule[].command",
    "port[].number",
    "deploy[].supervisor",
    "deploy[].runtime",
    "deploy[].env.*",
];

/// LIMIT: bytes of a key that is compared with the known ones; nothing is near to a longer one.
const COMPARED_LEN_MAX: usize = 64;

/// Reports every key that is not in [`KEYS`], with the nearest one that is.
pub(crate) fn check(table: &Table, out: &mut Problems) {
    check_table(table, "", "", out);
}

fn check_table(table: &Table, pattern: &str, path: &str, out: &mut Problems) {
    let known = children(pattern);
    for (key, node) in table {
        match known
            .iter()
            .find(|name| **name == "*" || name.trim_end_matches("[]") == key)
        {
            Some(name) => {
                let pattern = if pattern.is_empty() {
                    (*name).to_owned()
                } else {
                    format!("{pattern}.{name}")
                };
                check_value(node, &pattern, &join(path, key), out);
            }
            // A table where a value belongs has no known keys; the reader reports its type.
            None if known.is_empty() => {}
            None => unknown(key, node.place, pattern, path, out),
        }
    }
}

fn check_value(node: &Node, pattern: &str, path: &str, out: &mut Problems) {
    match &node.value {
        Value::Table(table) => check_table(table, pattern, path, out),
        Value::List(items) => items
            .iter()
            .for_each(|item| check_value(item, pattern, path, out)),
        _ => {}
    }
}

/// The names directly below a pattern, each once.
fn children(pattern: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for key in KEYS {
        let rest = if pattern.is_empty() {
            Some(*key)
        } else {
            key.strip_prefix(pattern)
                .and_then(|rest| rest.strip_prefix('.'))
        };
        let Some(name) = rest.and_then(|rest| rest.split('.').next()) else {
            continue;
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn unknown(key: &str, place: Place, pattern: &str, path: &str, out: &mut Problems) {
    let what = if path.is_empty() { "table" } else { "key" };
    let fix = match nearest(key, pattern) {
        Some((parent, name)) if parent == pattern && !path.is_empty() => {
            format!("did you mean {path}.{name}?")
        }
        Some(("", name)) => match name.strip_suffix("[]") {
            Some(name) => format!("did you mean [[{name}]]?"),
            None => format!("did you mean [{name}]?"),
        },
        Some((parent, name)) => format!("did you mean {}.{name}?", parent.trim_end_matches("[]")),
        None => {
            let known = children(pattern).join(", ").replace("[]", "");
            if path.is_empty() {
                format!("known tables are {known}")
            } else {
                format!("known keys of [{path}] are {known}")
            }
        }
    };
    let path = join(path, key);
    out.add(
        place,
        path.clone(),
        format!("{path} is not a known {what}"),
        fix,
    );
}

/// The known key or table that `key` was most likely meant to be: its table's pattern and its name.
fn nearest(key: &str, pattern: &str) -> Option<(&'static str, &'static str)> {
    if key.len() > COMPARED_LEN_MAX {
        return None;
    }
    let wanted = key.to_ascii_lowercase().replace('-', "_");
    let far_max = wanted.chars().count().div_ceil(3);
    let keys = KEYS
        .iter()
        .map(|known| known.rsplit_once('.').unwrap_or(("", known)));
    let tables = KEYS
        .iter()
        .filter_map(|known| Some(("", known.split_once('.')?.0)));
    let scored = keys.chain(tables).filter_map(|(parent, name)| {
        let plain = name.trim_end_matches("[]");
        if name == "*" || (parent.contains('*') && parent != pattern) {
            return None;
        }
        let begun = wanted.len() > 2 && plain.starts_with(&wanted) && plain != wanted;
        let distance = if begun {
            1
        } else {
            strsim::damerau_levenshtein(&wanted, plain)
        };
        let near = distance <= far_max && distance < plain.chars().count();
        // A sibling is likelier than a key of another table.
        near.then_some((distance * 2 + usize::from(parent != pattern), parent, name))
    });
    let (_, parent, name) = scored.min()?;
    Some((parent, name))
}

/// The pattern of a path: `deploy[1].env` becomes `deploy[].env`.
pub(crate) fn pattern_of(path: &str) -> String {
    let mut pattern = String::with_capacity(path.len());
    let mut in_index = false;
    for c in path.chars() {
        in_index &= c != ']';
        if !in_index {
            pattern.push(c);
        }
        in_index |= c == '[';
    }
    pattern
}

/// A path without the numbers of blocks, for messages.
pub(crate) fn shown_path(path: &str) -> String {
    pattern_of(path).replace("[]", "")
}

/// Calls `visit` for everything that a file says: path, place and value, tables before their keys.
pub(crate) fn walk(table: &Table, visit: &mut dyn FnMut(&str, &Node)) {
    walk_table(table, "", visit);
}

fn walk_table(table: &Table, path: &str, visit: &mut dyn FnMut(&str, &Node)) {
    for (key, node) in table {
        let path = if path.is_empty() {
            key_text(key)
        } else {
            join(path, key)
        };
        visit(&path, node);
        match &node.value {
            Value::Table(table) => walk_table(table, &path, visit),
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    visit(&path, item);
                    if let Value::Table(table) = &item.value {
                        walk_table(table, &path, visit);
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_keys() {
        let check = |parent: &str, key: &str, expected: Option<(&str, &str)>| {
            assert_eq!(nearest(key, parent), expected, "{parent}.{key}");
        };
        check("runtime", "memry", Some(("runtime", "memory")));
        check("runtime", "mem", Some(("runtime", "memory")));
        check("app", "memory", Some(("runtime", "memory")));
        check("", "memory", Some(("runtime", "memory")));
        check("", "name", Some(("app", "name")));
        check("", "runtme", Some(("", "runtime")));
        check("", "secret", Some(("", "secrets")));
        check("", "schedules", Some(("", "schedule[]")));
        check("runtime", "stop-timeout", Some(("runtime", "stop_timeout")));
        check("runtime.health", "pth", Some(("runtime.health", "path")));
        check("deploy[]", "superviser", Some(("deploy[]", "supervisor")));
        check("secrets.*", "nam", Some(("secrets.*", "name")));
        check("app", "zzz", None);
        check("app", &"x".repeat(65), None);
    }

    #[test]
    fn patterns_of_paths() {
        assert_eq!(pattern_of("deploy[12].env.A"), "deploy[].env.A");
        assert_eq!(shown_path("network.egress[0]"), "network.egress");
        assert_eq!(pattern_of("a]b[c"), "a]b[");
    }
}
