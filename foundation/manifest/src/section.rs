//! Reading the keys of one table: each is read by a function from [`crate::value`], and whatever is
//! wrong is reported with the key, its line, the value and the fix.

use crate::problem::Problems;
use crate::tree::{Node, Place, Table, Value, join};

/// Why a value is not what its key takes: completes "`key = value` …", and what to do instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) message: String,
    pub(crate) fix: String,
}

impl Wrong {
    pub(crate) fn new(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            fix: fix.into(),
        }
    }

    /// The value has another type than the key takes.
    pub(crate) fn kind(node: &Node, fix: impl Into<String>) -> Self {
        Self::new(format!("is {}", node.kind()), fix)
    }
}

/// One table of the file, or none: then every key of it is absent.
#[derive(Debug, Clone)]
pub(crate) struct Section<'t> {
    /// Dotted, for messages: `runtime.health`; a block of a list has the name of the list.
    pub(crate) path: String,
    pub(crate) place: Place,
    table: Option<&'t Table>,
    /// The key has a value, reported as no table; then nothing in it is missing.
    mistaken: bool,
}

impl<'t> Section<'t> {
    pub(crate) fn root(table: &'t Table) -> Self {
        Self {
            path: String::new(),
            place: Place::START,
            table: Some(table),
            mistaken: false,
        }
    }

    pub(crate) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'t Node> {
        self.table?.get(key)
    }

    /// All entries, in alphabetical order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'t String, &'t Node)> {
        self.table.into_iter().flatten()
    }

    /// Place of `key`, or of the table if the key is absent.
    pub(crate) fn place_of(&self, key: &str) -> Place {
        self.get(key).map_or(self.place, |node| node.place)
    }

    /// Reports that `key` has a value it cannot have.
    pub(crate) fn wrong(&self, out: &mut Problems, key: &str, node: &Node, wrong: Wrong) {
        if node.value == Value::Broken {
            return;
        }
        let path = join(&self.path, key);
        let message = format!("{path} = {} {}", node.shown(), wrong.message);
        out.add(node.place, path, message, wrong.fix);
    }

    /// The value of `key`, or `None` if it is absent or wrong.
    pub(crate) fn field<T>(
        &self,
        out: &mut Problems,
        key: &str,
        read: impl FnOnce(&'t Node) -> Result<T, Wrong>,
    ) -> Option<T> {
        let node = self.get(key)?;
        read(node)
            .map_err(|wrong| self.wrong(out, key, node, wrong))
            .ok()
    }

    /// The value of `key`, whose absence is a mistake.
    pub(crate) fn required<T>(
        &self,
        out: &mut Problems,
        key: &str,
        fix: &str,
        read: impl FnOnce(&'t Node) -> Result<T, Wrong>,
    ) -> Option<T> {
        if self.get(key).is_none() && !self.mistaken {
            let path = join(&self.path, key);
            out.add(self.place, path.clone(), format!("{path} is missing"), fix);
        }
        self.field(out, key, read)
    }

    /// The items of a list, each read by itself so that every wrong one is reported.
    pub(crate) fn items<T>(
        &self,
        out: &mut Problems,
        key: &str,
        max: usize,
        read: impl Fn(&'t Node) -> Result<T, Wrong>,
    ) -> Vec<T> {
        let Some(node) = self.get(key) else {
            return Vec::new();
        };
        let Value::List(items) = &node.value else {
            let fix = format!("write a list: {key} = [{}]", node.shown());
            self.wrong(out, key, node, Wrong::kind(node, fix));
            return Vec::new();
        };
        self.check_count(out, key, node.place, items.len(), max);
        let read = |item| {
            read(item)
                .map_err(|wrong| self.wrong(out, key, item, wrong))
                .ok()
        };
        items.iter().filter_map(read).collect()
    }

    /// The table under `key`; reported if it is something else.
    pub(crate) fn sub(&self, out: &mut Problems, key: &str) -> Section<'t> {
        let path = join(&self.path, key);
        let node = self.get(key);
        let table = node.and_then(Node::table);
        if let (Some(node), None) = (node, table) {
            let fix = if matches!(node.value, Value::List(_)) {
                format!("write [{path}] with single brackets, once")
            } else {
                format!("write a table: [{path}]")
            };
            self.wrong(out, key, node, Wrong::kind(node, fix));
        }
        Section {
            path,
            place: self.place_of(key),
            table,
            mistaken: node.is_some() && table.is_none(),
        }
    }

    /// The blocks `[[key]]`; reported if they are something else.
    pub(crate) fn blocks(&self, out: &mut Problems, key: &str, max: usize) -> Vec<Section<'t>> {
        let Some(node) = self.get(key) else {
            return Vec::new();
        };
        let path = join(&self.path, key);
        let fix = format!("write a block with double brackets: [[{path}]]");
        let Value::List(items) = &node.value else {
            self.wrong(out, key, node, Wrong::kind(node, fix));
            return Vec::new();
        };
        self.check_count(out, key, node.place, items.len(), max);
        let mut blocks = Vec::new();
        for item in items {
            match item.table() {
                Some(table) => {
                    blocks.push(Section {
                        path: path.clone(),
                        place: item.place,
                        table: Some(table),
                        mistaken: false,
                    });
                }
                None => self.wrong(out, key, item, Wrong::kind(item, fix.clone())),
            }
        }
        blocks
    }

    fn check_count(&self, out: &mut Problems, key: &str, place: Place, count: usize, max: usize) {
        if count > max {
            let path = join(&self.path, key);
            let message = format!("{path} has {count} entries, and {max} are allowed");
            out.add(place, path, message, "remove some");
        }
    }
}
