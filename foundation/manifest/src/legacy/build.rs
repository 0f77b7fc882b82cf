//! `[build] kind`, and what a `manifest.toml` said about the thing that runs.

use super::{Form, Upgrade, get};
use crate::tree::{Node, Place, Value};

/// What an earlier manifest builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Wasm,
    Docker,
}

impl Upgrade<'_> {
    pub(super) fn build(&mut self) {
        self.drop_key("build.builder", "the platform chooses who builds");
        self.drop_key("build.stable_tag", "an image is known by its digest");
        self.drop_key("runtime.language", "the image says it");
        self.drop_key("runtime.kernel", "the platform brings the kernel");
        self.drop_key("runtime.fuel_per_request", "requests are limited by time");
        let Some((kind, place, said)) = self.kind() else {
            return;
        };
        match kind {
            Kind::Wasm => self.wasm(place, &said),
            Kind::Docker => self.docker(place, &said),
        }
        self.inert_type(kind);
        self.memory_default(kind, place);
    }

    /// What is built, where that is said, and in which words; `None` if the words mean nothing.
    fn kind(&mut self) -> Option<(Kind, Place, String)> {
        if let Some(node) = self.take("build.kind") {
            let kind = match &node.value {
                Value::Text(text) if text == "docker" => Kind::Docker,
                Value::Text(text) if text == "wasm" => Kind::Wasm,
                _ => {
                    self.wrong("build.kind", &node, "\"docker\" or \"wasm\"");
                    return None;
                }
            };
            return Some((kind, node.place, format!("build.kind = {}", node.shown())));
        }
        let runtime_type = get(self.table, "runtime.type");
        let place = runtime_type.map_or(Place::START, |node| node.place);
        let is_wasm =
            runtime_type.is_none_or(|node| node.value == Value::Text("wasm-http".to_owned()));
        if self.form == Form::ManifestToml && is_wasm && !self.table.contains_key("build") {
            return Some((
                Kind::Wasm,
                place,
                "a manifest.toml without another runtime".to_owned(),
            ));
        }
        let place = self.table.get("build").map_or(place, |node| node.place);
        Some((Kind::Docker, place, "no build.kind".to_owned()))
    }

    fn wasm(&mut self, place: Place, said: &str) {
        let entry = self
            .take("runtime.entry")
            .unwrap_or_else(|| Node::text(place, "app.wasm"));
        self.note(
            entry.place,
            format!("{said} is now build.wasm = {}", entry.shown()),
        );
        self.put("build.wasm", entry);
        self.drop_key("build.dockerfile", "the component is built on your machine");
        self.drop_key("runtime.registry_ref", "a component comes from no registry");
    }

    fn docker(&mut self, place: Place, said: &str) {
        self.drop_key("runtime.entry", "an image is built from a Dockerfile");
        let image = ["runtime.registry_ref", "runtime.image"]
            .into_iter()
            .find(|path| get(self.table, path).is_some());
        if let Some(image) = image {
            self.rename(image, "build.image");
            self.drop_key("build.dockerfile", "the image is finished");
            self.drop_key("build.context", "the image is finished");
        } else if get(self.table, "build.dockerfile").is_none() {
            self.note(
                place,
                format!("{said} is now build.dockerfile = \"Dockerfile\""),
            );
            self.put("build.dockerfile", Node::text(place, "Dockerfile"));
        } else {
            self.note(place, format!("{said} is now build.dockerfile alone"));
        }
    }

    /// The earlier `tabbify.toml` took any `runtime.type` and did nothing with it.
    fn inert_type(&mut self, kind: Kind) {
        let Some(node) = get(self.table, "runtime.type") else {
            return;
        };
        let fits = match &node.value {
            Value::Text(text) if kind == Kind::Wasm => text == "wasm-http",
            Value::Text(text) => text == "docker" || text == "firecracker",
            _ => true,
        };
        if !fits {
            let why = format!("{} had no effect", node.shown());
            self.drop_key("runtime.type", &why);
        }
    }

    /// An absent `memory_mb` meant 512 in the one form and 64 in the other, whatever was built.
    fn memory_default(&mut self, kind: Kind, place: Place) {
        let earlier = match (self.form, kind) {
            (Form::Earlier, Kind::Wasm) => "512MiB",
            (Form::ManifestToml, Kind::Docker) => "64MiB",
            _ => return,
        };
        if get(self.table, "runtime.memory_mb").is_none() {
            self.note(
                place,
                format!(
                    "runtime.memory_mb had this default: it is now runtime.memory = {earlier:?}"
                ),
            );
            self.put("runtime.memory", Node::text(place, earlier));
        }
    }
}
