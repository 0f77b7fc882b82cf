//! `[lifecycle]`, memory and processors, the data disk, `[[runtime.ports]]`.

use super::{Upgrade, get};
use crate::tree::{Node, Place, Table, Value};

/// What `stateful = true` gave before `data_disk_mb` existed.
const DATA_DISK_MIB: u64 = 2048;

/// One `[[runtime.ports]]`.
struct EarlierPort {
    place: Place,
    port: Node,
    http: bool,
    primary: bool,
    public: bool,
}

impl Upgrade<'_> {
    pub(super) fn lifecycle(&mut self) {
        self.rename("lifecycle.mode", "runtime.lifecycle");
        if let Some(node) = self.take("lifecycle.idle_timeout_sec") {
            self.put("runtime.idle_timeout_sec", node);
        }
        self.close("lifecycle");
        let mode =
            get(self.table, "runtime.lifecycle").map(|node| (node.place, node.value.clone()));
        let mut always_on = false;
        if let Some((place, Value::Text(text))) = mode
            && text != "on_request"
        {
            always_on = true;
            if text != "always_on" {
                self.note(
                    place,
                    format!("lifecycle {text:?} is now \"always_on\", which is what it meant"),
                );
                self.take("runtime.lifecycle");
                self.put("runtime.lifecycle", Node::text(place, "always_on"));
            }
        }
        if always_on {
            self.drop_key(
                "runtime.idle_timeout_sec",
                "an app that is always on never idles",
            );
        }
        self.with_unit("runtime.idle_timeout_sec", "runtime.idle_timeout", "s");
    }

    pub(super) fn resources(&mut self) {
        self.with_unit("runtime.memory_mb", "runtime.memory", "MiB");
        self.rename("runtime.vcpus", "runtime.cpus");
    }

    pub(super) fn volume(&mut self) {
        let mount = self.take("runtime.data_mount");
        let size = self.take("runtime.data_disk_mb");
        let stateful = self.take("runtime.stateful");
        let Some(node) = stateful else {
            for (path, node) in [
                ("runtime.data_mount", mount),
                ("runtime.data_disk_mb", size),
            ] {
                if let Some(node) = node {
                    self.note(
                        node.place,
                        format!("{path} is dropped: without stateful = true it had no effect"),
                    );
                }
            }
            return;
        };
        match node.value {
            Value::Bool(true) => {}
            Value::Bool(false) => {
                self.note(
                    node.place,
                    "runtime.stateful = false is dropped: no volume is the default".to_owned(),
                );
                return;
            }
            _ => return self.wrong("runtime.stateful", &node, "true or false"),
        }
        let mib = match size {
            Some(size) => self.whole_number("runtime.data_disk_mb", &size),
            None => Some(DATA_DISK_MIB),
        };
        let Some(mib) = mib else { return };
        let mount = mount.unwrap_or_else(|| Node::text(node.place, "/data"));
        let volume = Table::from([
            ("mount".to_owned(), mount),
            (
                "size".to_owned(),
                Node::text(node.place, format!("{mib}MiB")),
            ),
        ]);
        let volume = Node {
            place: node.place,
            value: Value::Table(volume),
        };
        self.note(
            node.place,
            format!(
                "runtime.stateful is now runtime.volume = {}",
                volume.shown()
            ),
        );
        self.put("runtime.volume", volume);
    }

    pub(super) fn ports(&mut self) {
        let Some(node) = self.take("runtime.ports") else {
            return;
        };
        let Value::List(items) = node.value else {
            return self.wrong("runtime.ports", &node, "a list of blocks");
        };
        let ports: Vec<EarlierPort> = items
            .into_iter()
            .filter_map(|item| self.port(item))
            .collect();
        let primary = ports
            .iter()
            .position(|port| port.primary)
            .or_else(|| ports.iter().position(|port| port.http));
        let mut raw = Vec::new();
        for (index, port) in ports.into_iter().enumerate() {
            let number = port.port.shown();
            if Some(index) == primary {
                self.note(
                    port.place,
                    format!("[[runtime.ports]] port = {number} is now runtime.port = {number}"),
                );
                self.put("runtime.port", port.port);
                if port.public && get(self.table, "app.access").is_none() {
                    self.note(
                        port.place,
                        "expose = \"public\" is now app.access = \"public\"".to_owned(),
                    );
                    self.put("app.access", Node::text(port.place, "public"));
                }
            } else {
                self.note(
                    port.place,
                    format!("[[runtime.ports]] port = {number} is now [[port]] number = {number}"),
                );
                let block = Table::from([("number".to_owned(), port.port)]);
                raw.push(Node {
                    place: port.place,
                    value: Value::Table(block),
                });
            }
        }
        if let Some(first) = raw.first() {
            let place = first.place;
            self.put(
                "port",
                Node {
                    place,
                    value: Value::List(raw),
                },
            );
        }
    }

    fn port(&mut self, item: Node) -> Option<EarlierPort> {
        let place = item.place;
        let Value::Table(mut block) = item.value else {
            self.wrong("runtime.ports", &item, "a block");
            return None;
        };
        let is = |node: Option<Node>, text: &str| {
            node.map(|node| node.value == Value::Text(text.to_owned()))
        };
        let http = is(block.remove("protocol"), "http").unwrap_or(true);
        let public = is(block.remove("expose"), "public").unwrap_or(false);
        let primary = block
            .remove("primary")
            .is_some_and(|node| node.value == Value::Bool(true));
        let port = block.remove("port");
        for (key, node) in &block {
            let path = crate::tree::join("runtime.ports", key);
            self.out.add(
                node.place,
                path.clone(),
                format!("{path} is not a known key"),
                "delete the line",
            );
        }
        if port.is_none() {
            self.out.add(
                place,
                "runtime.ports.port",
                "runtime.ports.port is missing",
                "write port = 8080",
            );
        }
        Some(EarlierPort {
            place,
            port: port?,
            http,
            primary,
            public,
        })
    }
}
