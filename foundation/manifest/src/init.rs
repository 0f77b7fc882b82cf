//! The text of a fresh `tabbify.toml`, from what `tcli` found in the folder.

use tabbify_types::AppName;

use crate::resolved::DEFAULT_PORT;

/// What stands in a folder, as far as it says how to run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detected {
    /// A `Cargo.toml` whose library is a `cdylib`: a component, once built.
    RustWasm {
        /// The crate's name; its file has `_` where the name has `-`.
        crate_name: String,
    },
    /// A finished component.
    Component {
        /// Its path, relative to the folder.
        path: String,
    },
    /// A `Dockerfile`.
    Dockerfile {
        /// Its only `EXPOSE`.
        expose: Option<u16>,
    },
    /// Nothing that is known.
    Nothing,
}

impl Detected {
    /// Path of the component and what builds it; `None` if this gives no component.
    pub(crate) fn component(&self) -> Option<(String, Option<String>)> {
        match self {
            Self::RustWasm { crate_name } => {
                let file = crate_name.replace('-', "_");
                let command = "cargo build --release --target wasm32-wasip2".to_owned();
                Some((
                    format!("target/wasm32-wasip2/release/{file}.wasm"),
                    Some(command),
                ))
            }
            Self::Component { path } => Some((path.clone(), None)),
            Self::Dockerfile { .. } | Self::Nothing => None,
        }
    }
}

/// A `tabbify.toml` that says what was detected, and in comments what is most often set next.
#[must_use]
pub fn init_template(name: &AppName, detected: &Detected) -> String {
    let mut text = format!("[app]\nname = {}\n", quoted(name.as_str()));
    text.push_str("# access = \"public\"          # private without this line\n\n[build]\n");
    match (detected, detected.component()) {
        (_, Some((wasm, command))) => {
            text.push_str(&format!("wasm = {}\n", quoted(&wasm)));
            if let Some(command) = command {
                text.push_str(&format!("command = {}\n", quoted(&command)));
            }
            text.push_str("\n[runtime]\nmemory = \"64MiB\"\n");
        }
        (Detected::Dockerfile { expose }, None) => {
            let port = expose.unwrap_or(DEFAULT_PORT);
            text.push_str(&format!(
                "dockerfile = \"Dockerfile\"\n\n[runtime]\nport = {port}\nmemory = \"512MiB\"\n"
            ));
        }
        (_, None) => {
            text.push_str(
                "wasm = \"app.wasm\"             # the path of a component with wasi:http\n",
            );
            text.push_str("# command = \"make app.wasm\"  # what builds it\n\n[runtime]\nmemory = \"64MiB\"\n");
        }
    }
    text.push_str("\n# [env]\n# GREETING = \"hello\"\n");
    text
}

/// A TOML string of any text.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Manifest;

    #[test]
    fn every_template_is_a_manifest_in_todays_form() {
        let name: AppName = "shop".parse().unwrap();
        let cases = [
            (
                Detected::RustWasm {
                    crate_name: "hello-wasm".to_owned(),
                },
                true,
            ),
            (
                Detected::Component {
                    path: "it's \"odd\"/x.wasm".to_owned(),
                },
                true,
            ),
            (Detected::Nothing, true),
            (Detected::Dockerfile { expose: Some(3000) }, false),
        ];
        for (detected, supported) in cases {
            let text = init_template(&name, &detected);
            let parsed = Manifest::parse(&text, "tabbify.toml").unwrap();
            assert_eq!(
                (parsed.notes.len(), parsed.text == text),
                (0, true),
                "{text}"
            );
            assert_eq!(parsed.manifest.app.name, name);
            assert_eq!(
                parsed.manifest.resolve(&Detected::Nothing).is_ok(),
                supported,
                "{text}"
            );
        }
    }

    #[test]
    fn a_rust_component() {
        let detected = Detected::RustWasm {
            crate_name: "hello-wasm".to_owned(),
        };
        expect_test::expect![[r#"
            [app]
            name = "hello"
            # access = "public"          # private without this line

            [build]
            wasm = "target/wasm32-wasip2/release/hello_wasm.wasm"
            command = "cargo build --release --target wasm32-wasip2"

            [runtime]
            memory = "64MiB"

            # [env]
            # GREETING = "hello"
        "#]]
        .assert_eq(&init_template(&"hello".parse().unwrap(), &detected));
    }
}
