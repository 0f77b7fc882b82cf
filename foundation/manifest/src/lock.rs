//! `tabbify.lock`: which app this folder is, on each server. Committed, and written by `tcli` only.
//!
//! The version number in it is for people: numbers are reserved by the log, and whether the id is
//! this folder's app is checked against the server.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tabbify_types::{AppId, VersionNumber};

use crate::limits::{LOCK_SERVER_LEN_MAX, LOCK_SERVERS_MAX};
use crate::problem::{ManifestErrors, Problems};
use crate::section::{Section, Wrong};
use crate::tree::{self, Node, Place, Table, Value, join};
use crate::value;

/// The only version of the file that this release writes.
const VERSION: i64 = 1;

/// A lock file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lock {
    /// Server → app: the server's root key or URL.
    pub servers: BTreeMap<String, LockEntry>,
}

/// What a folder is on one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockEntry {
    /// The app.
    pub app_id: AppId,
    /// The latest version that `tcli` saw from here, never trusted; 0 before the first one.
    pub latest_version: VersionNumber,
}

impl Lock {
    /// Reads a lock file. The legacy form, which has one app and names no server, is read as the
    /// entry of `server`.
    ///
    /// # Errors
    ///
    /// Every mistake in the text, if there is one.
    pub fn parse(text: &str, file: &str, server: &str) -> Result<Self, ManifestErrors> {
        let mut out = Problems::new(file);
        let Some(table) = tree::parse(text, &mut out) else {
            return Err(out.into_errors());
        };
        let root = Section::root(&table);
        let legacy = root.get("app_id").is_some() || root.get("latest_version").is_some();
        let lock = if legacy {
            read_legacy(&root, server, &mut out)
        } else {
            read(&root, &mut out)
        };
        out.finish(lock)
    }
}

impl std::fmt::Display for Lock {
    /// The text of the file: the same entries always give the same bytes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("# Written by tcli. Commit this file: it says which app this folder is.\n")?;
        writeln!(f, "version = {VERSION}")?;
        for (server, entry) in &self.servers {
            f.write_str("\n[server.")?;
            write_key(f, server)?;
            writeln!(
                f,
                "]\napp_id = \"{}\"\nlatest_version = {}",
                entry.app_id, entry.latest_version
            )?;
        }
        Ok(())
    }
}

/// A quoted key: a server's name may have any character.
fn write_key(f: &mut std::fmt::Formatter<'_>, key: &str) -> std::fmt::Result {
    f.write_char('"')?;
    for c in key.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if c.is_control() => write!(f, "\\u{:04X}", u32::from(c))?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

fn read(root: &Section<'_>, out: &mut Problems) -> Option<Lock> {
    for (key, node) in root
        .entries()
        .filter(|(key, _)| !["version", "server"].contains(&key.as_str()))
    {
        unknown(&join("", key), node.place, out);
    }
    root.required(out, "version", "write version = 1", |node| {
        match node.value {
            Value::Integer(VERSION) => Ok(()),
            Value::Integer(_) => Err(Wrong::new("is of a newer tcli", "run tcli self-update")),
            _ => Err(Wrong::kind(node, "write version = 1")),
        }
    });
    let servers = root.sub(out, "server");
    let mut lock = Lock::default();
    for (server, node) in servers.entries() {
        let section = servers.sub(out, server);
        check_server(server, node, out);
        let Some(table) = node.table() else { continue };
        unknown_keys(table, &section.path, out);
        lock.servers
            .extend(entry(&section, out).map(|entry| (server.clone(), entry)));
    }
    if lock.servers.len() > LOCK_SERVERS_MAX {
        let message = format!(
            "server has {} entries, and {LOCK_SERVERS_MAX} are allowed",
            lock.servers.len()
        );
        out.add(
            servers.place,
            "server",
            message,
            "remove servers that are gone",
        );
    }
    Some(lock)
}

fn read_legacy(root: &Section<'_>, server: &str, out: &mut Problems) -> Option<Lock> {
    for (key, node) in root.entries() {
        match key.as_str() {
            "app_id" | "latest_version" => {}
            "version" | "server" => {
                let message = format!(
                    "{key} is of today's form, and app_id without a server of the earlier one"
                );
                out.add(
                    node.place,
                    key.clone(),
                    message,
                    "keep one of the two forms",
                );
            }
            _ => unknown(&join("", key), node.place, out),
        }
    }
    let entry = entry(root, out)?;
    Some(Lock {
        servers: BTreeMap::from([(server.to_owned(), entry)]),
    })
}

fn entry(section: &Section<'_>, out: &mut Problems) -> Option<LockEntry> {
    let app_id = section.required(
        out,
        "app_id",
        "restore the file from version control",
        |node| {
            let text = value::text(node, "\"0191e7c2-1111-7222-8333-444455556666\"")?;
            text.parse().map_err(|_| {
                Wrong::new("is not an app id", "restore the file from version control")
            })
        },
    );
    let latest_version = section
        .field(out, "latest_version", version_number)
        .unwrap_or_default();
    Some(LockEntry {
        app_id: app_id?,
        latest_version,
    })
}

fn version_number(node: &Node) -> Result<VersionNumber, Wrong> {
    let fix = "write a whole number: it is for information only";
    let Value::Integer(number) = node.value else {
        return Err(Wrong::kind(node, fix));
    };
    u32::try_from(number)
        .map(VersionNumber)
        .map_err(|_| Wrong::new("is not a version number", fix))
}

fn check_server(server: &str, node: &Node, out: &mut Problems) {
    if server.is_empty() || server.len() > LOCK_SERVER_LEN_MAX || server.contains(char::is_control)
    {
        let path = join("server", server);
        let message = format!("{path} does not name a server");
        out.add(node.place, path, message, "delete the entry");
    }
}

fn unknown_keys(table: &Table, path: &str, out: &mut Problems) {
    for (key, node) in table
        .iter()
        .filter(|(key, _)| !["app_id", "latest_version"].contains(&key.as_str()))
    {
        unknown(&join(path, key), node.place, out);
    }
}

fn unknown(path: &str, place: Place, out: &mut Problems) {
    let fix = "delete it, or run tcli self-update if a newer tcli wrote it";
    out.add(place, path, format!("{path} is not a known key"), fix);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0191e7c2-1111-7222-8333-444455556666";

    fn parse(text: &str) -> Result<Lock, ManifestErrors> {
        Lock::parse(text, "tabbify.lock", "here")
    }

    fn entry_of(latest_version: u32) -> LockEntry {
        LockEntry {
            app_id: ID.parse().unwrap(),
            latest_version: VersionNumber(latest_version),
        }
    }

    #[test]
    fn text_is_the_same_for_the_same_entries() {
        let lock = Lock {
            servers: BTreeMap::from([
                ("https://b.example".to_owned(), entry_of(3)),
                ("a\"\\".to_owned(), entry_of(0)),
            ]),
        };
        expect_test::expect![[r#"
            # Written by tcli. Commit this file: it says which app this folder is.
            version = 1

            [server."a\"\\"]
            app_id = "0191e7c2-1111-7222-8333-444455556666"
            latest_version = 0

            [server."https://b.example"]
            app_id = "0191e7c2-1111-7222-8333-444455556666"
            latest_version = 3
        "#]]
        .assert_eq(&lock.to_string());
        assert_eq!(parse(&lock.to_string()).unwrap(), lock);
        assert_eq!(
            parse(&Lock::default().to_string()).unwrap(),
            Lock::default()
        );
    }

    #[test]
    fn the_legacy_form_is_the_entry_of_the_server_in_use() {
        let lock = parse(&format!("app_id = \"{ID}\"\nlatest_version = 7\n")).unwrap();
        assert_eq!(
            lock.servers,
            BTreeMap::from([("here".to_owned(), entry_of(7))])
        );
        let without_version = parse(&format!("app_id = \"{ID}\"\n")).unwrap();
        assert_eq!(
            without_version.servers["here"].latest_version,
            VersionNumber(0)
        );
    }

    #[test]
    fn every_mistake_has_its_line() {
        let check = |text: &str, expected: &str| {
            assert_eq!(parse(text).unwrap_err().to_string(), expected, "{text}");
        };
        check("", "tabbify.lock:1: version is missing; write version = 1");
        check(
            "version = 2",
            "tabbify.lock:1: version = 2 is of a newer tcli; run tcli self-update",
        );
        check(
            "version = 1\nx = 1\n[server.a]\napp_id = \"b\"\nlatest_version = -1\ny = 2\n",
            "tabbify.lock:2: x is not a known key; delete it, or run tcli self-update if a newer tcli wrote it\n\
             tabbify.lock:4: server.a.app_id = \"b\" is not an app id; restore the file from version control\n\
             tabbify.lock:5: server.a.latest_version = -1 is not a version number; write a whole number: it is for information only\n\
             tabbify.lock:6: server.a.y is not a known key; delete it, or run tcli self-update if a newer tcli wrote it",
        );
        check(
            &format!("version = 1\napp_id = \"{ID}\"\n"),
            "tabbify.lock:1: version is of today's form, and app_id without a server of the earlier one; keep one of the two forms",
        );
        check(
            "latest_version = 3\n",
            "tabbify.lock:1: app_id is missing; restore the file from version control",
        );
        check(
            "version = 1\n<<<<<<< HEAD\n[server.a]\n",
            "tabbify.lock:2: a merge conflict is not resolved; keep one side and delete the markers",
        );
    }
}
