//! `secrets`: values come from a prompt that does not echo or from standard input, never from an argument,
//! which every user of the machine sees and the shell remembers; and no command shows one.

use std::io::{self, IsTerminal as _, Read as _};

use serde_json::json;
use tabbify_api::ErrorCode;
use tabbify_api::secrets::{SecretView, VALUE_LEN_MAX};
use tabbify_manifest::Manifest;
use tabbify_types::{AppName, SecretName};
use zeroize::Zeroizing;

use crate::args::{RemoveSecretArgs, SetSecretArgs};
use crate::client::Client;
use crate::command::Tool;
use crate::error::{Code, Exit, Failure, Result};
use crate::output;

pub(crate) fn set(tool: &Tool, args: &SetSecretArgs) -> Result<Exit> {
    let name = name(&args.name)?;
    // Whoever is not signed in types nothing for nothing.
    let client = tool.client()?;
    client.whoami()?;
    let value = value(&name, args.exact)?;
    let view = client.set_secret(&name, &value)?;
    let mut text = format!("{} v{} is set", view.name, view.version);
    text += &match view.apps.as_slice() {
        [] => ", and no app names it yet".to_owned(),
        apps => format!(
            "; {} {} it at the next start: {}",
            listed(apps),
            if apps.len() == 1 { "gets" } else { "get" },
            restarts(apps)
        ),
    };
    tool.output.result(&text, &json!({ "secret": view }))?;
    Ok(Exit::Fine)
}

pub(crate) fn list(tool: &Tool) -> Result<Exit> {
    let client = tool.client()?;
    let secrets = client.secrets()?;
    let mut rows = vec![
        ["NAME", "VERSION", "CHANGED", "USED BY"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(secrets.iter().map(row));
    let text = if secrets.is_empty() {
        "No secrets yet. Next: tcli secrets set NAME".to_owned()
    } else {
        output::table(&rows)
    };
    tool.output.result(&text, &json!({ "secrets": secrets }))?;
    Ok(Exit::Fine)
}

fn row(secret: &SecretView) -> Vec<String> {
    let apps = match secret.apps.as_slice() {
        [] => "-".to_owned(),
        apps => listed(apps),
    };
    vec![
        secret.name.to_string(),
        format!("v{}", secret.version),
        secret.changed.to_string(),
        apps,
    ]
}

pub(crate) fn remove(tool: &Tool, args: &RemoveSecretArgs) -> Result<Exit> {
    let name = name(&args.name)?;
    let client = tool.client()?;
    // Asked before: afterwards nobody knows who needs it.
    let secrets = client.secrets()?;
    let apps = secrets.into_iter().find(|secret| secret.name == name);
    let apps = apps.map_or_else(Vec::new, |secret| secret.apps);
    client.remove_secret(&name)?;
    let mut text = format!("{name} is removed");
    if !apps.is_empty() {
        let users = listed(&apps);
        text += &format!("; without it, these do not start again: {users}");
    }
    let document = json!({ "removed": name, "apps": apps });
    tool.output.result(&text, &document)?;
    Ok(Exit::Fine)
}

/// Whether the tenant has every secret that a manifest names; said before anything is built or sent.
pub(crate) fn check(client: &Client, manifest: &Manifest) -> Result<()> {
    if manifest.secrets.is_empty() {
        return Ok(());
    }
    let there = match client.secrets() {
        Ok(there) => there,
        // Whoever may push and not look is told when the app starts.
        Err(failure) if failure.is(ErrorCode::Forbidden) => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let mut lines = Vec::new();
    let mut runs: Vec<String> = Vec::new();
    for (variable, secret) in &manifest.secrets {
        let name = &secret.name;
        if there.iter().any(|it| it.name.as_str() == name) {
            continue;
        }
        let line = manifest.line_of(&format!("secrets.{variable}"));
        let line = line.or_else(|| manifest.line_of("secrets"));
        let at = line.map_or_else(String::new, |line| format!(" ({}:{line})", manifest.file()));
        lines.push(format!("Secret \"{name}\"{at} does not exist."));
        let run = format!("tcli secrets set {name}");
        if !runs.contains(&run) {
            runs.push(run);
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    let fix = format!("Run: {}. Nothing was uploaded.", runs.join("; "));
    Err(Failure::new(Code::SecretMissing, lines.join("\n")).fix(fix))
}

/// The name, if it is one. What is none may be a value, and is not repeated.
fn name(text: &str) -> Result<SecretName> {
    if let Some((name, _)) = text.split_once('=') {
        let what = "A value is no argument: every user of this machine can see it there.";
        let fix = match name.parse::<SecretName>() {
            Ok(name) => format!("Take another value, and run: tcli secrets set {name}"),
            Err(_) => "Take another value, and run: tcli secrets set NAME".to_owned(),
        };
        return Err(Failure::new(Code::Usage, what).fix(fix));
    }
    text.parse().map_err(|_| {
        let what = "That is not the name of a secret (1 to 63 of letters, digits, . _ and -).";
        Failure::new(Code::Usage, what).fix("Write it like: tcli secrets set api-key")
    })
}

fn value(name: &SecretName, exact: bool) -> Result<Zeroizing<Vec<u8>>> {
    let value = match io::stdin().is_terminal() {
        true => prompted(name)?,
        false => piped(exact)?,
    };
    if value.is_empty() {
        let what = "The value is empty.";
        let fix = format!("Type it at the prompt, or: tcli secrets set {name} < FILE");
        return Err(Failure::new(Code::NoValue, what).fix(fix));
    }
    if value.len() > VALUE_LEN_MAX {
        let what = format!("The value has more than {} KiB.", VALUE_LEN_MAX / 1024);
        let fix = "Put larger things into the app's own storage.";
        return Err(Failure::new(Code::NoValue, what).fix(fix));
    }
    Ok(value)
}

/// One line that is not shown.
fn prompted(name: &SecretName) -> Result<Zeroizing<Vec<u8>>> {
    let terminal = console::Term::stderr();
    let unreadable = |error: io::Error| {
        let what = format!("The terminal cannot be read: {error}.");
        Failure::new(Code::NoValue, what).fix("Give the value on standard input.")
    };
    let prompt = format!("Value of {name} (it is not shown): ");
    terminal.write_str(&prompt).map_err(unreadable)?;
    let line = terminal.read_secure_line().map_err(unreadable)?;
    Ok(Zeroizing::new(line.into_bytes()))
}

/// All of standard input; without `exact`, without the line ending that `echo` adds.
fn piped(exact: bool) -> Result<Zeroizing<Vec<u8>>> {
    // One byte more than may be, with its line ending: what is too long is seen, and never grows.
    let most = VALUE_LEN_MAX + 3;
    let mut value = Zeroizing::new(Vec::with_capacity(most));
    let limit = u64::try_from(most).unwrap_or(u64::MAX);
    let read = io::stdin().lock().take(limit).read_to_end(&mut value);
    read.map_err(|error| {
        let what = format!("Standard input cannot be read: {error}.");
        Failure::new(Code::NoValue, what)
    })?;
    if !exact {
        let ending = line_ending(&value);
        let len = value.len() - ending;
        value.truncate(len);
    }
    Ok(value)
}

fn line_ending(value: &[u8]) -> usize {
    match value {
        [.., b'\r', b'\n'] => 2,
        [.., b'\n'] => 1,
        _ => 0,
    }
}

fn listed(apps: &[AppName]) -> String {
    let names: Vec<&str> = apps.iter().map(AppName::as_str).collect();
    names.join(", ")
}

fn restarts(apps: &[AppName]) -> String {
    let each = apps.iter().map(|app| format!("tcli restart {app}"));
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_ending_at_most() {
        for (text, len) in [
            ("", 0),
            ("a", 0),
            ("\n", 1),
            ("a\n", 1),
            ("a\r\n", 2),
            ("a\n\n", 1),
            ("a\r", 0),
        ] {
            assert_eq!(line_ending(text.as_bytes()), len, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_name_is_not_repeated() {
        assert_eq!(name("api-key").unwrap().as_str(), "api-key");
        for bad in [
            "api-key=hunter2",
            "hunter2 and more",
            "=hunter2",
            "-hunter2",
        ] {
            let refused = name(bad).unwrap_err();
            assert!(!refused.to_string().contains("hunter2"), "{refused}");
            assert_eq!(refused.exit, Exit::Usage);
        }
    }
}
