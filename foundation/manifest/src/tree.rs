//! A TOML text as a tree whose keys and values know their place: what the upgrade rewrites and the
//! reader reads.
//!
//! The parser recovers from a mistake, so that all broken lines are reported in one run; a text
//! that is broken as TOML is not looked at further, since half a table means nothing.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::limits::{ENV_NAME_LEN_MAX, FILE_LEN_MAX, NESTING_MAX};
use crate::problem::Problems;

/// Where something stands in a text; both numbers count from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Place {
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// Of the key that has the value; of the value itself in a list.
    pub(crate) place: Place,
    pub(crate) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// A date or time, which no key takes, as written.
    Datetime(String),
    List(Vec<Node>),
    Table(Table),
    /// Something that was reported already; nothing more is said about it.
    Broken,
}

pub(crate) type Table = BTreeMap<String, Node>;

impl Node {
    pub(crate) fn text(place: Place, text: impl Into<String>) -> Self {
        Self {
            place,
            value: Value::Text(text.into()),
        }
    }

    pub(crate) fn table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    /// What the value is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Text(_) => "text",
            Value::Integer(_) | Value::Float(_) => "a number",
            Value::Bool(_) => "a boolean",
            Value::Datetime(_) => "a date",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Broken => "broken",
        }
    }

    /// The value on one line, in full: TOML, except that text is escaped as Rust does it.
    pub(crate) fn inline(&self) -> String {
        match &self.value {
            Value::Text(text) => format!("{text:?}"),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => format!("{number:?}"),
            Value::Bool(bool) => bool.to_string(),
            Value::Datetime(text) => text.clone(),
            Value::Broken => "…".to_owned(),
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(Self::inline).collect();
                format!("[{}]", items.join(", "))
            }
            Value::Table(table) => {
                let entries: Vec<String> = table
                    .iter()
                    .map(|(key, node)| format!("{} = {}", key_text(key), node.inline()))
                    .collect();
                if entries.is_empty() {
                    "{}".to_owned()
                } else {
                    format!("{{ {} }}", entries.join(", "))
                }
            }
        }
    }

    /// The value on one line, shortened for messages.
    pub(crate) fn shown(&self) -> String {
        shorten(&self.inline())
    }

    fn to_toml(&self) -> toml::Value {
        match &self.value {
            Value::Text(text) | Value::Datetime(text) => toml::Value::String(text.clone()),
            Value::Integer(number) => toml::Value::Integer(*number),
            Value::Float(number) => toml::Value::Float(*number),
            Value::Bool(bool) => toml::Value::Boolean(*bool),
            Value::List(items) => toml::Value::Array(items.iter().map(Self::to_toml).collect()),
            Value::Table(table) => toml::Value::Table(to_toml(table)),
            Value::Broken => toml::Value::Boolean(false),
        }
    }
}

/// The tree as a TOML table; one with a broken value was refused before. Keys stand in alphabetical order.
pub(crate) fn to_toml(table: &Table) -> toml::Table {
    table
        .iter()
        .map(|(key, node)| (key.clone(), node.to_toml()))
        .collect()
}

/// At most 60 characters, so that a message stays on one line.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN_MAX: usize = 60;
    if text.chars().count() <= SHOWN_MAX {
        text.to_owned()
    } else {
        text.chars().take(SHOWN_MAX).chain(['…']).collect()
    }
}

/// A key as it may stand in a message: bare if TOML lets it, else quoted, escaped and shortened.
pub(crate) fn key_text(key: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if (1..=ENV_NAME_LEN_MAX).contains(&key.len()) && key.bytes().all(bare) {
        key.to_owned()
    } else {
        shorten(&format!("{key:?}"))
    }
}

/// `parent.key` for messages and paths; the parent of a top-level key is empty.
pub(crate) fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() {
        key_text(key)
    } else {
        format!("{parent}.{}", key_text(key))
    }
}

/// Parses `text`; `None` if it is not TOML or too large, with the reasons in `out`.
pub(crate) fn parse(text: &str, out: &mut Problems) -> Option<Table> {
    if text.len() > FILE_LEN_MAX {
        let message = format!(
            "the file has {} bytes, and {FILE_LEN_MAX} are allowed",
            text.len()
        );
        out.add(
            Place::START,
            "",
            message,
            "move what is not configuration into other files",
        );
        return None;
    }
    let lines = Lines::of(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        report_syntax(&lines, &errors, out);
        return None;
    }
    let mut reader = Reader { lines: &lines, out };
    Some(reader.table("", document.get_ref(), 1))
}

/// One problem for each broken line: what follows on the same line follows from the first.
fn report_syntax(lines: &Lines<'_>, errors: &[toml::de::Error], out: &mut Problems) {
    let mut seen = BTreeMap::new();
    for error in errors {
        let place = lines.place(error.span().map_or(0, |span| span.start));
        let first = seen.entry(place.line).or_insert((place, error));
        if place < first.0 {
            *first = (place, error);
        }
    }
    let markers = ["<<<<<<<", "=======", ">>>>>>>"];
    let is_marker = |line: u32| {
        markers
            .iter()
            .any(|marker| lines.text(line).starts_with(marker))
    };
    for (line, (place, error)) in seen {
        if is_marker(line) {
            out.add(
                place,
                "",
                "a merge conflict is not resolved",
                "keep one side and delete the markers",
            );
            continue;
        }
        let message = error.message();
        let (what, expected) = message.split_once(", expected ").unwrap_or((message, ""));
        let fix = match (what, expected) {
            ("string values must be quoted", _) => "put the value in double quotes".to_owned(),
            ("duplicate key", _) => "keep one of them".to_owned(),
            (_, "" | "nothing") => String::new(),
            (_, expected) => format!("expected {expected}"),
        };
        let shown = shorten(lines.text(line).trim());
        out.add(place, "", format!("not TOML: {what} in {shown:?}"), fix);
    }
}

struct Reader<'a, 'p> {
    lines: &'a Lines<'a>,
    out: &'p mut Problems,
}

impl Reader<'_, '_> {
    fn table(&mut self, path: &str, table: &DeTable<'_>, depth: usize) -> Table {
        let mut read = Table::new();
        for (key, value) in table {
            let place = self.lines.place(key.span().start);
            let value = self.value(&join(path, key.get_ref()), place, value.get_ref(), depth);
            read.insert(key.get_ref().clone().into_owned(), Node { place, value });
        }
        read
    }

    fn value(&mut self, path: &str, place: Place, value: &DeValue<'_>, depth: usize) -> Value {
        if depth > NESTING_MAX {
            self.out
                .add(place, path, format!("{path} is nested too deep"), "");
            return Value::Broken;
        }
        match value {
            DeValue::String(text) => Value::Text(text.clone().into_owned()),
            DeValue::Integer(number) => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => Value::Integer(number),
                    Err(_) => self.out_of_range(path, place, number.as_str()),
                }
            }
            DeValue::Float(number) => match number.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() => Value::Float(number),
                _ => self.out_of_range(path, place, number.as_str()),
            },
            DeValue::Boolean(bool) => Value::Bool(*bool),
            DeValue::Datetime(time) => Value::Datetime(time.to_string()),
            DeValue::Array(items) => {
                let read = items.iter().map(|item| {
                    let place = self.lines.place(item.span().start);
                    Node {
                        place,
                        value: self.value(path, place, item.get_ref(), depth + 1),
                    }
                });
                Value::List(read.collect())
            }
            DeValue::Table(table) => Value::Table(self.table(path, table, depth + 1)),
        }
    }

    fn out_of_range(&mut self, path: &str, place: Place, number: &str) -> Value {
        let message = format!("{path} = {} is not a number that fits", shorten(number));
        self.out
            .add(place, path, message, "write a number of usual size");
        Value::Broken
    }
}

/// The lines of a text, to turn an offset into a place.
struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        let after_breaks = text
            .bytes()
            .enumerate()
            .filter(|(_, b)| *b == b'\n')
            .map(|(i, _)| i + 1);
        Self {
            text,
            starts: std::iter::once(0).chain(after_breaks).collect(),
        }
    }

    fn place(&self, offset: usize) -> Place {
        let index = self
            .starts
            .partition_point(|start| *start <= offset)
            .saturating_sub(1);
        let before = self
            .text
            .get(self.range(index).start..offset)
            .unwrap_or_default();
        Place {
            line: number(index + 1),
            column: number(before.chars().count() + 1),
        }
    }

    fn text(&self, line: u32) -> &'t str {
        let index = usize::try_from(line)
            .unwrap_or(usize::MAX)
            .saturating_sub(1);
        self.text.get(self.range(index)).unwrap_or_default()
    }

    fn range(&self, index: usize) -> Range<usize> {
        let end = self.text.len();
        let start = self.starts.get(index).copied().unwrap_or(end);
        start..self.starts.get(index + 1).copied().unwrap_or(end)
    }
}

/// A count within a file of at most [`FILE_LEN_MAX`] bytes always fits.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
