//! `init`: looks at the folder and writes a `tabbify.toml` for what it finds. Never overwrites.

use std::fs::OpenOptions;
use std::io::{self, Write as _};

use serde_json::json;
use tabbify_manifest::{Detected, Manifest, init_template, not_supported_yet};
use tabbify_types::AppName;

use crate::args::InitArgs;
use crate::command::Tool;
use crate::error::{Code, Exit, Failure, Result};
use crate::folder::{Folder, MANIFEST};

/// The name of an app whose folder has none that could be one.
const NAMELESS: &str = "app";

pub(crate) fn run(tool: &Tool, args: &InitArgs) -> Result<Exit> {
    if tool.folder.manifest_file_exists() {
        return Err(exists(&tool.folder));
    }
    let detected = tool.folder.detect()?;
    let found = match &detected {
        Detected::RustWasm { crate_name } => format!("Cargo.toml, component {crate_name}"),
        Detected::Component { path } => path.clone(),
        Detected::Dockerfile { expose: Some(port) } => format!("Dockerfile, EXPOSE {port}"),
        Detected::Dockerfile { expose: None } => "Dockerfile".to_owned(),
        Detected::Nothing => return Err(nothing_found(&tool.folder)),
    };
    let name = app_name(tool, args, &detected)?;
    let text = init_template(&name, &detected);
    write_new(&tool.folder, &text)?;
    // What the template asks for may not be built yet; better said now than at the first push.
    let parsed = Manifest::parse(&text, MANIFEST).expect("our own template is a manifest");
    let missing = not_supported_yet(&parsed.manifest);
    for problem in &missing {
        tool.progress.say(&format!("note: {problem}"));
    }
    let line = format!("{found} → {MANIFEST} ({name}, private)");
    let next = if missing.is_empty() {
        "\nNext: tcli push"
    } else {
        ""
    };
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let document =
        json!({ "manifest": MANIFEST, "name": name, "found": found, "not_supported_yet": missing });
    tool.output.result(&format!("{line}{next}"), &document)?;
    Ok(Exit::Fine)
}

/// `--name` as it is; else the crate's or the folder's, made into one that an app can have.
fn app_name(tool: &Tool, args: &InitArgs, detected: &Detected) -> Result<AppName> {
    if let Some(name) = &args.name {
        let wrong = |error| Failure::new(Code::Usage, format!("{error}."));
        return name.parse().map_err(wrong);
    }
    let from = match detected {
        Detected::RustWasm { crate_name } => Some(crate_name.clone()),
        Detected::Component { .. } | Detected::Dockerfile { .. } | Detected::Nothing => None,
    };
    let from = from.or_else(|| tool.folder.name()).unwrap_or_default();
    Ok(nearest_name(&from))
}

/// The app name that is nearest to a text: lower case, and one hyphen for whatever cannot stand.
fn nearest_name(text: &str) -> AppName {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    let mut name = words.join("-");
    name.truncate(63);
    let name = name.trim_matches('-');
    let name = if name.is_empty() { NAMELESS } else { name };
    name.parse()
        .expect("letters and digits with single hyphens between are an app name")
}

fn write_new(folder: &Folder, text: &str) -> Result<()> {
    let path = folder.join(MANIFEST);
    let opened = OpenOptions::new().write(true).create_new(true).open(&path);
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(folder),
        _ => Failure::file("write", &path, &error),
    })
}

fn exists(folder: &Folder) -> Failure {
    let what = format!("{folder} has a manifest already; it was left as it is.");
    Failure::new(Code::ManifestExists, what).fix("Run: tcli push")
}

fn nothing_found(folder: &Folder) -> Failure {
    let what = format!(
        "{folder} has none of: Cargo.toml with crate-type = [\"cdylib\"], one *.wasm, Dockerfile."
    );
    let fix = "Run it where the app is, or with -C DIR.";
    Failure::new(Code::NothingFound, what).fix(fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_names() {
        let check = |text: &str, expected: &str| {
            assert_eq!(nearest_name(text).as_str(), expected, "{text}");
        };
        check("hello-wasm", "hello-wasm");
        check("My_Shop 2", "my-shop-2");
        check("--a--b--", "a-b");
        check("größe", "gr-e");
        check("…", "app");
        check("", "app");
        check(&format!("{}-b", "a".repeat(62)), &"a".repeat(62));
        check(&"ab".repeat(40), &"ab".repeat(40)[..63]);
    }
}
