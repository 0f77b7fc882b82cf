//! No text makes the crate panic, and what it accepts it can write and read again.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tabbify_manifest::{Detected, Lock, LockEntry, Manifest, limits, stamp};
use tabbify_types::{AppId, VersionNumber};

const ID: &str = "0191e7c2-1111-7222-8333-444455556666";

/// Good manifests of every form, as a start for damage.
const GOOD: &[&str] = &[
    include_str!("ui/design-example.toml"),
    include_str!("ui/full-wasm.toml"),
    include_str!("ui/earlier-docker.toml"),
    include_str!("ui/earlier-service.toml"),
    include_str!("ui/earlier-wasm.toml"),
    include_str!("ui/manifest-wasm.toml"),
    include_str!("ui/manifest-docker.toml"),
];

/// What a manifest says, without the lines on which it says it and without the id.
fn says(manifest: &Manifest) -> String {
    let Manifest {
        app,
        build,
        runtime,
        env,
        secrets,
        egress,
        events,
        release,
        ..
    } = manifest;
    let (schedules, ports, deploys) = (&manifest.schedules, &manifest.ports, &manifest.deploys);
    let app = (&app.name, &app.description, &app.access);
    format!(
        "{app:?} {build:?} {runtime:?} {env:?} {secrets:?} {egress:?} {events:?} {release:?} {schedules:?} {ports:?} {deploys:?}"
    )
}

/// Everything that must hold of any text under any name.
fn check(text: &str, file: &str) -> Result<(), TestCaseError> {
    let parsed = match Manifest::parse(text, file) {
        Ok(parsed) => parsed,
        Err(errors) => {
            let lines = u32::try_from(text.matches('\n').count() + 1).unwrap_or(u32::MAX);
            prop_assert!(
                !errors.problems.is_empty() && errors.problems.len() <= limits::PROBLEMS_MAX
            );
            prop_assert!(
                errors
                    .problems
                    .is_sorted_by_key(|problem| (problem.line, problem.column))
            );
            for problem in &errors.problems {
                prop_assert!((1..=lines).contains(&problem.line), "{problem}");
                prop_assert!(
                    !problem.to_string().contains(char::is_control),
                    "{problem:?}"
                );
                prop_assert!(problem.to_string().len() < 2000, "{problem}");
            }
            return Ok(());
        }
    };
    for detected in [
        Detected::Nothing,
        Detected::Component {
            path: "app.wasm".to_owned(),
        },
    ] {
        if let Ok(resolved) = parsed.manifest.resolve(&detected) {
            prop_assert_eq!(resolved.run_config().entry, "app.wasm");
        }
    }
    let id: AppId = ID
        .parse()
        .map_err(|_| TestCaseError::fail("the id is one"))?;
    let stamped =
        stamp(&parsed.text, id).map_err(|error| TestCaseError::fail(error.to_string()))?;
    let again = Manifest::parse(&stamped, "tabbify.toml");
    let again = again.map_err(|errors| TestCaseError::fail(format!("{errors}\n{stamped}")))?;
    prop_assert_eq!(again.manifest.app.id, Some(id));
    prop_assert_eq!(again.notes.len(), 0);
    prop_assert_eq!(says(&again.manifest), says(&parsed.manifest));
    Ok(())
}

/// One damage to a text: what is at a place is replaced by something else.
fn damage(text: &str, place: usize, len: usize, with: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let start = place % (chars.len() + 1);
    let end = (start + len).min(chars.len());
    chars[..start]
        .iter()
        .copied()
        .chain(with.chars())
        .chain(chars[end..].iter().copied())
        .collect()
}

/// Pieces that mean something to a manifest, so that damage reaches past the TOML parser.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("\"".to_owned()),
        Just("\n[env]\n".to_owned()),
        Just("\n[[deploy]]\n".to_owned()),
        Just("-1".to_owned()),
        Just("99999999999999999999".to_owned()),
        Just("{}".to_owned()),
        Just("[[]]".to_owned()),
        Just("true".to_owned()),
        Just("\u{feff}".to_owned()),
        Just("\r\n".to_owned()),
        Just("secret:x".to_owned()),
        Just("memory_mb = 1\n".to_owned()),
        "[ -~]{0,4}",
        ".{0,3}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in ".{0,200}") {
        check(&text, "tabbify.toml")?;
        let _ = Lock::parse(&text, "tabbify.lock", "here");
    }

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        check(&String::from_utf8_lossy(&bytes), "manifest.toml")?;
    }

    #[test]
    fn damaged_manifests(
        which in 0..GOOD.len(),
        legacy_name in any::<bool>(),
        damages in proptest::collection::vec((any::<usize>(), 0usize..6, piece()), 0..4),
    ) {
        let mut text = GOOD[which].to_owned();
        for (place, len, with) in damages {
            text = damage(&text, place % 10_000, len, &with);
        }
        check(&text, if legacy_name { "a/manifest.toml" } else { "tabbify.toml" })?;
    }

    /// Whole lines moved about keep most of the TOML valid and mix the forms.
    #[test]
    fn shuffled_lines(picks in proptest::collection::vec((0..GOOD.len(), 0usize..60), 0..30)) {
        let mut text = String::new();
        for (which, line) in picks {
            text.push_str(GOOD[which].lines().nth(line).unwrap_or("[app]"));
            text.push('\n');
        }
        check(&text, "tabbify.toml")?;
        check(&format!("[app]\nname = \"x\"\n{text}"), "tabbify.toml")?;
    }

    #[test]
    fn locks_round_trip(
        servers in proptest::collection::btree_map("[^\\p{C}]{1,60}", any::<u32>(), 0..6),
    ) {
        let entries = servers.into_iter().map(|(server, version)| {
            (server, LockEntry { app_id: AppId::mint(), latest_version: VersionNumber(version) })
        });
        let lock = Lock { servers: entries.collect::<BTreeMap<_, _>>() };
        prop_assert_eq!(&Lock::parse(&lock.to_string(), "tabbify.lock", "here").unwrap(), &lock);
    }
}

#[test]
fn limits_hold() {
    let check_error = |text: &str, part: &str| {
        let errors = Manifest::parse(text, "tabbify.toml").unwrap_err();
        assert!(errors.to_string().contains(part), "{errors}");
        errors
    };
    check_error(
        &"#".repeat(limits::FILE_LEN_MAX + 1),
        "65537 bytes, and 65536 are allowed",
    );
    check_error(&format!("{}a = 1", "a.".repeat(30_000)), "not TOML");
    check_error(&format!("a = {}", "[".repeat(60_000)), "not TOML");
    let many: String = (0..300).map(|i| format!("V{i} = \"x\"\n")).collect();
    check_error(
        &format!("app.name = \"x\"\n[env]\n{many}"),
        "300 variables, and 256 are allowed",
    );
    let large = "x".repeat(limits::ENV_LEN_MAX);
    check_error(
        &format!("app.name = \"x\"\nenv.A = \"{large}\"\n"),
        "bytes, and 32768 are allowed",
    );
    let unknown: String = (0..4000).map(|i| format!("memor{i} = 1\n")).collect();
    let errors = check_error(&unknown, "and 3901 more");
    assert_eq!(errors.problems.len(), limits::PROBLEMS_MAX);
    assert_eq!(errors.problems[0].line, 1);
}
