//! The lock, the one life of an instance, and files that are garbage.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};
use tabbify_api::runner::{ExitRecord, Failure};
use tabbify_types::event::v1::FailureReason;
use tabbify_types::{InstanceId, Timestamp};

use super::*;
use crate::state::tests::{of, placement};

fn boot(dir: &RunnerDir) -> Boot {
    let order = placement(dir.of(), 1);
    Boot {
        of: dir.of(),
        tenant: order.tenant,
        name: None,
        deploy: order.deploy,
        version: order.version,
        slot: order.slot,
        epoch: order.epoch,
        artifact: order.artifact,
        run: order.run,
        store: "file:///nowhere".to_owned(),
        vault: None,
        logs: PathBuf::from("/nowhere"),
        cache: PathBuf::from("/nowhere"),
        volumes: None,
        engine: None,
        microvms: None,
        underlay: ([127, 0, 0, 1], 0).into(),
        coordinator: None,
        peers: Vec::new(),
        woken: false,
        secret: crate::control::Secret::mint().to_text(),
    }
}

fn home() -> (tempfile::TempDir, RunnerDir) {
    let home = tempfile::tempdir().expect("a temporary directory");
    let dir = RunnerDir::new(&home.path().join("runners"), of(1, 1));
    (home, dir)
}

#[test]
fn a_prepared_directory_is_private_and_alive_until_its_lock_is_dropped() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_home, dir) = home();
    assert_eq!(dir.life().unwrap(), Life::Unborn);
    let boot = boot(&dir);
    let prepared = dir.prepare(&boot).unwrap().unwrap();
    assert_eq!(dir.life().unwrap(), Life::Alive(Control::Unwatched));
    // While it is held, a second supervisor changes nothing: not even the secret.
    assert!(dir.prepare(&self::boot(&dir)).unwrap().is_none());
    assert_eq!(dir.boot().unwrap().secret, boot.secret);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.path()), 0o700);
    for file in [BOOT_FILE, BIRTH_FILE, RUNNER_LOG] {
        assert_eq!(mode(&dir.path().join(file)), 0o600, "{file}");
    }
    drop(prepared);
    assert_eq!(dir.life().unwrap(), Life::Unborn);
    // A duplicate, as a child has it, is the same lock.
    let prepared = dir.prepare(&boot).unwrap().unwrap();
    let inherited = prepared.lock.try_clone().unwrap();
    drop(prepared);
    assert!(dir.is_locked().unwrap());
    drop(inherited);
    assert!(!dir.is_locked().unwrap());
}

#[test]
fn an_instance_has_one_life() {
    for (file, bytes) in [
        (BIRTH_FILE, &b"{}"[..]),
        (BIRTH_FILE, b"\xff"),
        (EXIT_FILE, b""),
    ] {
        let (_home, dir) = home();
        drop(dir.prepare(&boot(&dir)).unwrap().unwrap());
        fs::write(dir.path().join(file), bytes).unwrap();
        assert!(matches!(dir.life().unwrap(), Life::Dead(_)), "{file}");
        assert!(dir.prepare(&boot(&dir)).unwrap().is_none(), "{file}");
        assert!(!dir.is_locked().unwrap(), "{file}");
    }
}

#[test]
fn the_end_is_told_by_the_exit_record_and_the_last_words() {
    let (_home, dir) = home();
    drop(dir.prepare(&boot(&dir)).unwrap().unwrap());
    let exit = ExitRecord {
        code: 70,
        failure: Some(Failure {
            reason: FailureReason::WrongWorld,
            detail: "no incoming-handler".to_owned(),
        }),
        at: Timestamp::from_secs(1),
    };
    let text = serde_json::to_vec(&exit).unwrap();
    fs::write(dir.path().join(EXIT_FILE), text).unwrap();
    let log = format!("first\n{}last words\n\n  \n", "x".repeat(20_000));
    fs::write(dir.path().join(RUNNER_LOG), log).unwrap();
    let end = dir.end();
    assert_eq!(end.failure(None), exit.failure.clone().unwrap());
    assert_eq!(end.exit, Some(exit));
    let words = end.last_words.unwrap();
    assert!(words.len() <= LAST_WORDS_LEN_MAX && words.ends_with("last words"));
}

#[test]
fn only_names_of_instances_are_scanned_and_only_they_are_removed() {
    let (_home, dir) = home();
    let runners = dir.path().ancestors().nth(2).unwrap().to_owned();
    let other = RunnerDir::new(&runners, of(2, 7));
    for made in [&dir, &other] {
        drop(made.prepare(&boot(made)).unwrap().unwrap());
    }
    let app = dir.path().parent().unwrap();
    for stray in [app.join("007"), app.join("-1"), runners.join("notes")] {
        fs::create_dir(stray).unwrap();
    }
    fs::write(runners.join("file"), b"").unwrap();
    let mut found: Vec<_> = RunnerDir::scan(&runners).unwrap();
    found.sort_by_key(RunnerDir::of);
    assert_eq!(found, [dir.clone(), other.clone()]);
    assert_eq!(found[1].of().instance, InstanceId(7));

    dir.remove().unwrap();
    dir.remove().unwrap();
    assert!(!dir.path().exists() && app.join("007").exists());
    other.remove().unwrap();
    assert!(!other.path().parent().unwrap().exists());
}

#[test]
fn a_birth_record_of_another_instance_is_none() {
    let (_home, dir) = home();
    drop(dir.prepare(&boot(&dir)).unwrap().unwrap());
    let birth = |instance| Birth {
        of: of(1, instance),
        pid: 1,
        at: Timestamp::default(),
    };
    let write = |birth: &Birth| {
        let text = serde_json::to_vec(birth).unwrap();
        fs::write(dir.path().join(BIRTH_FILE), text).unwrap();
    };
    write(&birth(2));
    assert_eq!(dir.birth(), None);
    write(&birth(1));
    assert_eq!(dir.birth(), Some(birth(1)));
}

proptest! {
    #[test]
    fn garbage_is_no_life_and_no_panic(files in vec(vec(any::<u8>(), 1..200), 4)) {
        let (_home, dir) = home();
        drop(dir.prepare(&boot(&dir)).unwrap().unwrap());
        let names = [BOOT_FILE, BIRTH_FILE, EXIT_FILE, RUNNER_LOG];
        let written: BTreeMap<_, _> = names.into_iter().zip(&files).collect();
        for (name, bytes) in written {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        assert!(matches!(dir.life().unwrap(), Life::Dead(_)));
        assert!(dir.boot().is_err());
        assert_eq!(dir.birth(), None);
        assert_eq!(dir.end().exit, None);
    }
}
