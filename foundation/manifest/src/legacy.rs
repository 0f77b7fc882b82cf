//! The earlier forms, rewritten into today's before anything else looks at them.
//!
//! Two were in use: `manifest.toml`, and a `tabbify.toml` with `[build] kind`, `[lifecycle]`,
//! `[capabilities]` and `secret:` values. Their keys overlap, so one upgrade serves both, and each
//! change leaves a note. A file that has keys of an earlier form and keys that only today's has is
//! refused: nobody can say which of the two its author meant.
//!
//! Values are moved as they are where today's form takes the same ones; a wrong value is then
//! reported by the reader of today's key, on the line of the earlier one.

mod build;
mod network;
mod runtime;

use crate::problem::{Note, Problems};
use crate::tree::{Node, Place, Table, Value, join, to_toml};

/// Keys that only the earlier forms have, and what to write today.
const EARLIER: &[(&str, &str)] = &[
    ("app.kind", "delete the line"),
    (
        "app.version",
        "delete the line: the platform numbers versions",
    ),
    (
        "app.public",
        "write [app] access = \"public\" or \"private\"",
    ),
    (
        "build.kind",
        "write [build] dockerfile = \"Dockerfile\" or wasm = \"app.wasm\"",
    ),
    (
        "build.builder",
        "delete the line: the platform chooses who builds",
    ),
    (
        "build.stable_tag",
        "delete the line: an image is known by its digest",
    ),
    ("runtime.image", "write [build] image"),
    ("runtime.language", "delete the line"),
    ("runtime.entry", "write [build] wasm = \"app.wasm\""),
    ("runtime.registry_ref", "write [build] image"),
    (
        "runtime.kernel",
        "delete the line: the platform brings the kernel",
    ),
    (
        "runtime.fuel_per_request",
        "delete the line: requests are limited by time",
    ),
    ("runtime.memory_mb", "write memory = \"512MiB\""),
    ("runtime.vcpus", "write cpus = 1"),
    ("runtime.idle_timeout_sec", "write idle_timeout = \"300s\""),
    (
        "runtime.ports",
        "write port = 8080, and [[port]] for raw TCP",
    ),
    (
        "runtime.stateful",
        "write volume = { mount = \"/data\", size = \"2GiB\" }",
    ),
    ("runtime.data_mount", "write volume = { mount = \"/data\" }"),
    (
        "runtime.data_disk_mb",
        "write volume = { mount = \"/data\", size = \"2GiB\" }",
    ),
    ("lifecycle", "write [runtime] lifecycle"),
    ("routes", "delete the table: every path goes to the app"),
    (
        "capabilities",
        "write [events] subscribe and emit, and [network] egress",
    ),
    ("agent", "write [app] name"),
];

/// Keys that only today's form has.
const TODAY: &[&str] = &[
    "app.access",
    "build.image",
    "build.wasm",
    "build.command",
    "runtime.command",
    "runtime.health",
    "runtime.idle_timeout",
    "runtime.stop_timeout",
    "runtime.memory",
    "runtime.cpus",
    "runtime.replicas",
    "runtime.volume",
    "network",
    "events",
    "release",
    "schedule",
    "port",
];

/// Keys by which a `manifest.toml` is known under any name.
const MANIFEST_TOML: &[&str] = &[
    "runtime.entry",
    "runtime.fuel_per_request",
    "runtime.kernel",
    "runtime.registry_ref",
];

/// Which of the earlier forms; they differ in what an absent key meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The earlier `tabbify.toml`: docker unless it says otherwise.
    Earlier,
    /// `manifest.toml`: wasm unless it says otherwise.
    ManifestToml,
}

/// Rewrites `table` into today's form if it is of an earlier one: the notes in the order of lines,
/// or `None` if it is of today's form. A mixture is reported in `out`.
pub(crate) fn upgrade(table: &mut Table, out: &mut Problems) -> Option<Vec<Note>> {
    let earlier = earlier_keys(table);
    let by_name = is_manifest_toml(&out.file());
    if earlier.is_empty() && !by_name {
        return None;
    }
    if let Some((today, place)) = first_of_today(table) {
        for (path, node, fix) in earlier {
            let path = crate::schema::shown_path(&path);
            let message = format!(
                "{path} is of an earlier form, and {today} (line {}) is of today's",
                place.line
            );
            out.add(node, path, message, fix);
        }
        remove_earlier(table);
        return None;
    }
    let manifest_toml = by_name || MANIFEST_TOML.iter().any(|path| get(table, path).is_some());
    let form = if manifest_toml {
        Form::ManifestToml
    } else {
        Form::Earlier
    };
    let mut upgrade = Upgrade {
        table,
        out,
        notes: Vec::new(),
        form,
    };
    upgrade.app();
    upgrade.build();
    upgrade.lifecycle();
    upgrade.resources();
    upgrade.volume();
    upgrade.ports();
    upgrade.capabilities();
    upgrade.secrets();
    upgrade.deploys();
    let mut notes = upgrade.notes;
    notes.sort_by_key(|note| note.line);
    Some(notes)
}

/// The upgraded manifest as text.
pub(crate) fn render(table: &Table) -> String {
    format!("# Upgraded from an earlier form.\n{}", to_toml(table))
}

fn is_manifest_toml(file: &str) -> bool {
    file.rsplit(['/', '\\']).next() == Some("manifest.toml")
}

/// Every key of an earlier form: path, place, and what to write today.
fn earlier_keys(table: &Table) -> Vec<(String, Place, &'static str)> {
    let listed = EARLIER
        .iter()
        .filter_map(|(path, fix)| Some(((*path).to_owned(), get(table, path)?.place, *fix)));
    let mut keys: Vec<_> = listed.collect();
    if let Some(Node {
        place,
        value: Value::List(_),
    }) = table.get("secrets")
    {
        keys.push((
            "secrets".to_owned(),
            *place,
            "write [secrets] API_KEY = \"api-key\"",
        ));
    }
    for (name, node) in table.get("env").and_then(Node::table).into_iter().flatten() {
        if secret_reference(node).is_some() {
            let fix = "move it to [secrets]: API_KEY = \"api-key\", or { name = \"tls-key\", as = \"file\" }";
            keys.push((join("env", name), node.place, fix));
        }
    }
    keys
}

fn first_of_today(table: &Table) -> Option<(&'static str, Place)> {
    let listed = TODAY
        .iter()
        .filter_map(|path| Some((*path, get(table, path)?.place)));
    let secrets = table.get("secrets").filter(|node| node.table().is_some());
    listed
        .chain(secrets.map(|node| ("secrets", node.place)))
        .min_by_key(|(_, place)| *place)
}

fn remove_earlier(table: &mut Table) {
    for (path, _) in EARLIER {
        take(table, path);
    }
    if let Some(Node {
        value: Value::List(_),
        ..
    }) = table.get("secrets")
    {
        table.remove("secrets");
    }
    if let Some(Node {
        value: Value::Table(env),
        ..
    }) = table.get_mut("env")
    {
        env.retain(|_, node| secret_reference(node).is_none());
    }
}

/// `secret:NAME` and `secret-file:NAME`: the name, and whether the app gets a file.
fn secret_reference(node: &Node) -> Option<(&str, bool)> {
    let Value::Text(text) = &node.value else {
        return None;
    };
    match text.strip_prefix("secret-file:") {
        Some(name) => Some((name, true)),
        None => text.strip_prefix("secret:").map(|name| (name, false)),
    }
}

fn get<'t>(table: &'t Table, path: &str) -> Option<&'t Node> {
    match path.split_once('.') {
        Some((first, rest)) => get(table.get(first)?.table()?, rest),
        None => table.get(path),
    }
}

/// Takes a key out, and its table too if nothing else is in it.
fn take(table: &mut Table, path: &str) -> Option<Node> {
    let Some((first, rest)) = path.split_once('.') else {
        return table.remove(path);
    };
    let Some(Node {
        value: Value::Table(inner),
        ..
    }) = table.get_mut(first)
    else {
        return None;
    };
    let taken = take(inner, rest);
    if taken.is_some() && inner.is_empty() {
        table.remove(first);
    }
    taken
}

struct Upgrade<'a> {
    table: &'a mut Table,
    out: &'a mut Problems,
    notes: Vec<Note>,
    form: Form,
}

impl Upgrade<'_> {
    fn note(&mut self, place: Place, message: String) {
        self.notes.push(Note {
            file: self.out.file(),
            line: place.line,
            message,
        });
    }

    fn take(&mut self, path: &str) -> Option<Node> {
        take(self.table, path)
    }

    /// Puts a value under today's key; two earlier keys for the same one are a mistake.
    fn put(&mut self, path: &str, node: Node) {
        let (table, key) = path.rsplit_once('.').unwrap_or(("", path));
        let place = node.place;
        let mut inner = &mut *self.table;
        for part in table.split('.').filter(|part| !part.is_empty()) {
            let empty = || Node {
                place,
                value: Value::Table(Table::new()),
            };
            let Value::Table(next) = &mut inner.entry(part.to_owned()).or_insert_with(empty).value
            else {
                // The reader reports that this is no table.
                return;
            };
            inner = next;
        }
        if let Some(other) = inner.get(key) {
            let message = format!("{path} is given here and on line {}", other.place.line);
            self.out.add(place, path, message, "keep one of them");
        } else {
            inner.insert(key.to_owned(), node);
        }
    }

    /// Moves a value to today's key as it is, with a note.
    fn rename(&mut self, earlier: &str, today: &str) {
        if let Some(node) = self.take(earlier) {
            self.note(node.place, format!("{earlier} is now {today}"));
            self.put(today, node);
        }
    }

    fn drop_key(&mut self, earlier: &str, why: &str) {
        if let Some(node) = self.take(earlier) {
            self.note(node.place, format!("{earlier} is dropped: {why}"));
        }
    }

    /// Turns a number into today's text with a unit: `memory_mb = 64` into `memory = "64MiB"`.
    fn with_unit(&mut self, earlier: &str, today: &str, unit: &str) {
        let Some(node) = self.take(earlier) else {
            return;
        };
        if let Some(number) = self.whole_number(earlier, &node) {
            let text = format!("{number}{unit}");
            self.note(
                node.place,
                format!("{earlier} = {number} is now {today} = {text:?}"),
            );
            self.put(today, Node::text(node.place, text));
        }
    }

    fn whole_number(&mut self, path: &str, node: &Node) -> Option<u64> {
        let number = match node.value {
            Value::Integer(number) => u64::try_from(number).ok(),
            _ => None,
        };
        if number.is_none() {
            self.wrong(path, node, "a whole number");
        }
        number
    }

    fn wrong(&mut self, path: &str, node: &Node, expected: &str) {
        if node.value == Value::Broken {
            return;
        }
        let message = format!("{path} = {} is not {expected}", node.shown());
        self.out
            .add(node.place, path, message, format!("write {expected}"));
    }

    /// Removes a table of an earlier form; what is left in it was never a key of it.
    fn close(&mut self, name: &str) {
        let Some(node) = self.table.remove(name) else {
            return;
        };
        match &node.value {
            Value::Table(left) => {
                for (key, node) in left {
                    let path = join(name, key);
                    self.out.add(
                        node.place,
                        path.clone(),
                        format!("{path} is not a known key"),
                        "delete the line",
                    );
                }
            }
            _ => self.wrong(name, &node, "a table"),
        }
    }

    fn app(&mut self) {
        self.rename("agent.name", "app.name");
        self.close("agent");
        self.drop_key("app.kind", "every app is of one kind");
        self.drop_key("app.version", "the platform numbers versions");
        if let Some(node) = self.take("app.public") {
            match node.value {
                Value::Bool(public) => {
                    let access = if public { "public" } else { "private" };
                    self.note(
                        node.place,
                        format!("app.public = {public} is now app.access = {access:?}"),
                    );
                    self.put("app.access", Node::text(node.place, access));
                }
                _ => self.wrong("app.public", &node, "true or false"),
            }
        }
        if let Some(node) = self.table.remove("routes") {
            self.note(
                node.place,
                "[routes] is dropped: every path goes to the app".to_owned(),
            );
        }
    }
}
