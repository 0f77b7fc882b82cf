//! `[capabilities]`, `secret:` and `secret-file:` values, `[[secrets]]`, `[[deploy]]` by bare name.

use super::{Upgrade, secret_reference};
use crate::tree::{Node, Table, Value, join};

impl Upgrade<'_> {
    pub(super) fn capabilities(&mut self) {
        for key in ["subscribe_segments", "emit_segments"] {
            let today = if key == "emit_segments" {
                "events.emit"
            } else {
                "events.subscribe"
            };
            let path = join("capabilities", key);
            let Some(mut node) = self.take(&path) else {
                continue;
            };
            if let Value::List(items) = &mut node.value {
                items.iter_mut().for_each(own_segment);
            }
            self.note(
                node.place,
                format!("{path} is now {today} = {}", node.shown()),
            );
            self.put(today, node);
        }
        self.rename("capabilities.http_allow_list", "network.egress");
        self.close("capabilities");
    }

    pub(super) fn secrets(&mut self) {
        if let Some(Node {
            value: Value::List(_),
            ..
        }) = self.table.get("secrets")
        {
            let blocks = self.table.remove("secrets");
            if let Some(Node {
                value: Value::List(items),
                ..
            }) = blocks
            {
                items.into_iter().for_each(|item| self.secret_block(item));
            }
        }
        for (variable, name, file, node) in self.references() {
            let today = join("secrets", &variable);
            let message = if file {
                format!(
                    "env.{variable} is now {today}, as a file: read its path from {variable}_FILE"
                )
            } else {
                format!(
                    "env.{variable} = {} is now {today} = {name:?}",
                    node.shown()
                )
            };
            self.note(node.place, message);
            let name = Node::text(node.place, name);
            let value = if file {
                let way = Node::text(node.place, "file");
                let table = Table::from([("name".to_owned(), name), ("as".to_owned(), way)]);
                Node {
                    place: node.place,
                    value: Value::Table(table),
                }
            } else {
                name
            };
            self.put_secret(variable, value);
        }
    }

    /// Takes the references out of `[env]`: variable, secret, whether as a file, and the value.
    fn references(&mut self) -> Vec<(String, String, bool, Node)> {
        let Some(Node {
            value: Value::Table(env),
            ..
        }) = self.table.get_mut("env")
        else {
            return Vec::new();
        };
        let mut found = Vec::new();
        env.retain(|variable, node| match secret_reference(node) {
            Some((name, file)) => {
                found.push((variable.clone(), name.to_owned(), file, node.clone()));
                false
            }
            None => true,
        });
        if env.is_empty() && !found.is_empty() {
            self.table.remove("env");
        }
        found
    }

    fn secret_block(&mut self, item: Node) {
        let place = item.place;
        let Value::Table(mut block) = item.value else {
            return self.wrong("secrets", &item, "a block");
        };
        let (name, variable) = (block.remove("name"), block.remove("env_var"));
        let required = block.remove("required");
        for (key, node) in &block {
            let path = join("secrets", key);
            self.out.add(
                node.place,
                path.clone(),
                format!("{path} is not a known key"),
                "delete the line",
            );
        }
        let (Some(name), Some(variable)) = (name, variable) else {
            let message = "a [[secrets]] block has no name or no env_var";
            self.out.add(
                place,
                "secrets",
                message,
                "write name = \"api-key\" and env_var = \"API_KEY\"",
            );
            return;
        };
        let Value::Text(variable) = variable.value else {
            return self.wrong("secrets.env_var", &variable, "the name of a variable");
        };
        if let Some(Node {
            place,
            value: Value::Bool(false),
        }) = required
        {
            self.note(
                place,
                "secrets.required = false is dropped: every secret is required now".to_owned(),
            );
        }
        let today = join("secrets", &variable);
        self.note(
            place,
            format!("[[secrets]] {} is now {today}", name.shown()),
        );
        self.put_secret(variable, name);
    }

    /// Not [`Upgrade::put`]: a variable's name may be any text, dots included.
    fn put_secret(&mut self, variable: String, node: Node) {
        let place = node.place;
        let empty = || Node {
            place,
            value: Value::Table(Table::new()),
        };
        let secrets = self.table.entry("secrets".to_owned()).or_insert_with(empty);
        let Value::Table(secrets) = &mut secrets.value else {
            return;
        };
        if let Some(other) = secrets.get(&variable) {
            let path = join("secrets", &variable);
            let message = format!("{path} is given here and on line {}", other.place.line);
            self.out.add(place, path, message, "keep one of them");
        } else {
            secrets.insert(variable, node);
        }
    }

    pub(super) fn deploys(&mut self) {
        let Some(Node {
            value: Value::List(blocks),
            ..
        }) = self.table.get_mut("deploy")
        else {
            return;
        };
        let mut named = Vec::new();
        for block in blocks {
            let Value::Table(block) = &mut block.value else {
                continue;
            };
            let Some(Node {
                place,
                value: Value::Text(name),
            }) = block.get_mut("supervisor")
            else {
                continue;
            };
            if name != "any" && !name.contains(':') {
                named.push((
                    *place,
                    format!("deploy.supervisor = {name:?} is now \"name:{name}\""),
                ));
                *name = format!("name:{name}");
            }
        }
        for (place, message) in named {
            self.note(place, message);
        }
    }
}

/// `tenant_*.chat` named every tenant's segment; an app only ever had its own.
fn own_segment(item: &mut Node) {
    if let Value::Text(text) = &mut item.value
        && text.starts_with("tenant_")
        && let Some((_, rest)) = text.split_once('.')
    {
        *text = rest.to_owned();
    }
}
