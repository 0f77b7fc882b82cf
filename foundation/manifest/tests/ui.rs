//! What a developer sees for each manifest under `tests/ui`: the errors, or the notes, the upgraded
//! text, what is not supported yet, and the resolved form.
//!
//! `UPDATE_EXPECT=1 cargo test -p tabbify-manifest --test ui` rewrites the `.expected` files; read
//! the difference before you commit it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tabbify_manifest::{Detected, Manifest, not_supported_yet};

/// Fewer cases than this means that the folder was not found.
const CASES_MIN: usize = 20;

fn cases() -> std::io::Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui");
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Cases named `manifest-…` stand for a file of that name: its defaults were different.
fn file_name(path: &Path) -> &'static str {
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    if stem.starts_with("manifest-") {
        "manifest.toml"
    } else {
        "tabbify.toml"
    }
}

fn report(text: &str, file: &str) -> Result<String, std::fmt::Error> {
    let mut seen = String::new();
    let parsed = match Manifest::parse(text, file) {
        Ok(parsed) => parsed,
        Err(errors) => return Ok(format!("ERRORS\n{errors}\n")),
    };
    if parsed.text != text {
        writeln!(seen, "NOTES")?;
        for note in &parsed.notes {
            writeln!(seen, "{note}")?;
        }
        writeln!(seen, "\nUPGRADED\n{}", parsed.text)?;
    }
    let manifest = &parsed.manifest;
    writeln!(
        seen,
        "MANIFEST\n{:?}\n{:?}\n{:?}",
        manifest.app, manifest.build, manifest.runtime
    )?;
    writeln!(
        seen,
        "env {:?}\nsecrets {:?}\negress {:?}",
        manifest.env, manifest.secrets, manifest.egress
    )?;
    writeln!(
        seen,
        "{:?}\nrelease {:?}",
        manifest.events, manifest.release
    )?;
    writeln!(
        seen,
        "{:?}\n{:?}\n{:?}",
        manifest.schedules, manifest.ports, manifest.deploys
    )?;
    match manifest.resolve(&Detected::Nothing) {
        Ok(resolved) => {
            writeln!(
                seen,
                "\nRESOLVED\n{:?} {:?} {:?}",
                resolved.name, resolved.access, resolved.build
            )?;
            writeln!(
                seen,
                "{:#?}\n{:#?}",
                resolved.running,
                resolved.run_config()
            )?;
        }
        Err(errors) => writeln!(seen, "\nREFUSED\n{errors}")?,
    }
    Ok(seen)
}

#[test]
fn what_a_developer_sees() {
    let cases = cases().unwrap();
    assert!(cases.len() >= CASES_MIN, "{} cases", cases.len());
    for path in cases {
        let text = std::fs::read_to_string(&path).unwrap();
        let seen = report(&text, file_name(&path)).unwrap();
        expect_test::expect_file![path.with_extension("expected")].assert_eq(&seen);
    }
}

/// An upgrade is complete: its text is of today's form and says the same.
#[test]
fn an_upgraded_text_needs_no_upgrade() {
    let mut upgraded = 0;
    for path in cases().unwrap() {
        let text = std::fs::read_to_string(&path).unwrap();
        let Ok(first) = Manifest::parse(&text, file_name(&path)) else {
            continue;
        };
        let again = Manifest::parse(&first.text, "tabbify.toml").unwrap();
        assert_eq!(again.notes, [], "{}", path.display());
        assert_eq!(again.text, first.text, "{}", path.display());
        let (a, b) = (&first.manifest, &again.manifest);
        assert_eq!(
            (&a.app, &a.build, &a.runtime),
            (&b.app, &b.build, &b.runtime),
            "{}",
            path.display()
        );
        assert_eq!(
            (&a.env, &a.secrets, &a.egress),
            (&b.env, &b.secrets, &b.egress),
            "{}",
            path.display()
        );
        assert_eq!(
            (&a.events, &a.release),
            (&b.events, &b.release),
            "{}",
            path.display()
        );
        assert_eq!(
            (&a.schedules, &a.ports, &a.deploys),
            (&b.schedules, &b.ports, &b.deploys)
        );
        upgraded += usize::from(first.text != text);
    }
    assert!(upgraded >= 4, "{upgraded} cases were upgraded");
}

/// The example of the design names every key, and each is either supported or refused by name.
#[test]
fn the_documented_example_parses() {
    let text = include_str!("ui/design-example.toml");
    let manifest = Manifest::parse(text, "tabbify.toml").unwrap().manifest;
    let refused = not_supported_yet(&manifest);
    assert_eq!(manifest.line_of("network.egress"), Some(33));
    assert!(
        refused
            .iter()
            .any(|problem| problem.key == "events.subscribe" && problem.line == 36)
    );
}
