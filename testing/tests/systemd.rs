//! The systemd units that we hand out keep apps alive over a restart of the service, and systemd takes them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};
use tabbify_testing::platform::root;

/// A unit, by section and key; systemd lets a key stand several times, ours must not.
type Unit = BTreeMap<(String, String), String>;

fn units() -> anyhow::Result<Vec<PathBuf>> {
    let folder = root().join("docs/operating/systemd");
    let entries: Result<Vec<_>, _> = std::fs::read_dir(folder)?.collect();
    let paths = entries?.into_iter().map(|entry| entry.path());
    let units: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "service"))
        .collect();
    ensure!(units.len() == 2, "{units:?}");
    Ok(units)
}

/// Reads what systemd.syntax(7) says, as far as our units use it.
fn parse(text: &str) -> anyhow::Result<Unit> {
    let (mut unit, mut section) = (Unit::new(), String::new());
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            name.clone_into(&mut section);
            continue;
        }
        let (key, value) = line.split_once('=').with_context(|| format!("{line:?}"))?;
        let before = unit.insert((section.clone(), key.to_owned()), value.to_owned());
        ensure!(before.is_none(), "{section}.{key} stands twice");
    }
    Ok(unit)
}

#[test]
fn apps_outlive_the_service() {
    for path in units().unwrap() {
        let unit = parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let shown = path.display();
        let get = |key: &str| {
            let key = ("Service".to_owned(), key.to_owned());
            unit.get(&key).map(String::as_str)
        };
        for (key, value) in [
            ("KillMode", "process"),
            ("Delegate", "yes"),
            ("OOMPolicy", "continue"),
            ("TasksMax", "infinity"),
            ("Restart", "always"),
            ("StateDirectory", "tabbify"),
            ("StateDirectoryMode", "0700"),
            ("Type", "exec"),
        ] {
            assert_eq!(get(key), Some(value), "{shown}: {key}");
        }
        // These end with the service, or would follow each of its processes.
        for key in [
            "PrivateTmp",
            "RuntimeDirectory",
            "DynamicUser",
            "PrivateDevices",
            "RestrictNamespaces",
        ] {
            assert_eq!(get(key), None, "{shown}: {key}");
        }
        let stop: u64 = get("TimeoutStopSec").unwrap().parse().unwrap();
        assert!(stop > 15, "{shown}: roles take up to 15 s to end");
        assert!(
            get("ExecStart")
                .unwrap()
                .starts_with("/usr/local/bin/tabbify "),
            "{shown}"
        );
        assert!(!get("User").unwrap().is_empty(), "{shown}");
        let given_up = ("Unit".to_owned(), "StartLimitIntervalSec".to_owned());
        assert_eq!(unit[&given_up], "0", "{shown}");
        let wanted = ("Install".to_owned(), "WantedBy".to_owned());
        assert_eq!(unit[&wanted], "multi-user.target", "{shown}");
    }
}

#[test]
fn systemd_takes_the_units() {
    let home = tempfile::tempdir().unwrap();
    for path in units().unwrap() {
        // The program need not be installed here; everything else is as we hand it out.
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace("/usr/local/bin/tabbify ", "/bin/true ");
        let copy = home.path().join(path.file_name().unwrap());
        std::fs::write(&copy, text).unwrap();
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(&copy)
            .output();
        let verified = match verified {
            Ok(verified) => verified,
            Err(error) => {
                eprintln!("NOT RUN: systemd_takes_the_units: systemd-analyze: {error}");
                return;
            }
        };
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(
            verified.status.success() && said.is_empty(),
            "{}: {said}",
            path.display()
        );
    }
}

#[test]
fn what_is_no_unit_is_refused() {
    assert!(parse("[Service]\nKillMode\n").is_err());
    assert!(parse("[Service]\nA=1\nA=2\n").is_err());
}
