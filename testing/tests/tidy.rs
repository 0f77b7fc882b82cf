//! The tree explains itself and stays so: crate graph, file limits, documents that name what is
//! there, inheritance, marks with numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use tabbify_testing::platform::root;

/// LIMIT: lines of one source file (STYLE: stop at 800 without tests).
const FILE_LINES_MAX: usize = 800;
/// Crates that run as roles of their own: none depends on another.
const DAEMONS: [&str; 10] = [
    "log",
    "read",
    "gateway",
    "auth",
    "coordinator",
    "mesh-gateway",
    "node",
    "registry",
    "supervisor",
    "runner",
];
/// LIMIT: lines of a crate root, which contains no logic.
const LIB_LINES_MAX: usize = 150;
/// LIMIT: lines of a program's `main.rs`.
const MAIN_LINES_MAX: usize = 60;

/// Files that git knows or would add, with these endings.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is there in a checkout");
    let all = String::from_utf8_lossy(&output.stdout).into_owned();
    let wanted = |path: &&str| endings.iter().any(|ending| path.ends_with(ending));
    let paths = all.lines().filter(wanted).map(PathBuf::from);
    let found: Vec<PathBuf> = paths.filter(|path| root().join(path).is_file()).collect();
    assert!(!found.is_empty(), "no files with {endings:?}");
    found
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn assert_none(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}:\n  {}", wrong.join("\n  "));
}

#[test]
fn crate_graph_is_the_one_in_architecture() {
    let output = Command::new("cargo")
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo is there");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeSet<&str> = packages
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    let short = |name: &str| name.strip_prefix("tabbify-").unwrap_or(name).to_owned();
    let mut actual: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages {
        let edges = package["dependencies"].as_array().unwrap().iter();
        let ours = edges
            .filter(|edge| edge["kind"].is_null())
            .map(|edge| edge["name"].as_str().unwrap())
            .filter(|name| names.contains(name))
            .map(short);
        actual.insert(short(package["name"].as_str().unwrap()), ours.collect());
    }

    // Rows such as: | `app/mesh` | what it is | types api process |
    let text = read("ARCHITECTURE.md");
    let section = text
        .split("## Crates")
        .nth(1)
        .expect("ARCHITECTURE.md has a section Crates");
    let mut written: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in section.lines().skip_while(|l| !l.starts_with('|')).skip(2) {
        let Some(row) = row.strip_prefix("| `") else {
            break;
        };
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let directory = cells[0].trim_end_matches('`');
        let manifest = read(format!("{directory}/Cargo.toml"));
        let name = manifest
            .lines()
            .find_map(|l| l.strip_prefix("name = "))
            .unwrap();
        let edges = cells[2]
            .split_whitespace()
            .filter(|edge| *edge != "—")
            .map(str::to_owned);
        written.insert(short(name.trim_matches('"')), edges.collect());
    }
    assert_eq!(
        actual, written,
        "cargo metadata (left) and ARCHITECTURE.md (right) differ"
    );

    // Daemon crates form an antichain; the vocabulary depends on nothing.
    for daemon in DAEMONS {
        let edges = &actual[&short(daemon)];
        let others: Vec<_> = DAEMONS
            .iter()
            .filter(|other| edges.contains(**other))
            .collect();
        assert!(others.is_empty(), "{daemon} depends on {others:?}");
    }
    assert!(actual["types"].is_empty());
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut wrong = Vec::new();
    for path in files(&[".rs"]) {
        let text = read(&path);
        let lines = text.lines().count();
        let shown = path.display();
        let max = match path.file_name().and_then(|name| name.to_str()) {
            Some("lib.rs")
                if !path.starts_with("examples") && !path.starts_with("testing/fixtures") =>
            {
                LIB_LINES_MAX
            }
            Some("main.rs")
                if path.ends_with("src/main.rs") && !path.starts_with("testing/fixtures") =>
            {
                MAIN_LINES_MAX
            }
            Some("mod.rs") => {
                wrong.push(format!(
                    "{shown}: name it after its module instead of mod.rs"
                ));
                continue;
            }
            _ => FILE_LINES_MAX,
        };
        if lines > max {
            wrong.push(format!("{shown}: {lines} lines, at most {max}"));
        }
        if !text.starts_with("//!") {
            wrong.push(format!(
                "{shown}: does not begin with a //! that says what it is"
            ));
        }
        for (i, line) in text.lines().enumerate() {
            let mark = ["TO", "DO"].concat();
            if line.contains(&mark) && !line.contains(&format!("{mark}(#")) {
                wrong.push(format!("{shown}:{}: {mark} without an issue number", i + 1));
            }
        }
    }
    assert_none("source files", &wrong);
}

#[test]
fn vocabulary_stays_small() {
    for (room, max) in [
        ("foundation/types/src", 2_900), // docs/adr/0008
        ("foundation/process/src", 1_500),
    ] {
        let sources = files(&[".rs"])
            .into_iter()
            .filter(|path| path.starts_with(room));
        // What a user of the crate compiles: tests do not count.
        let of_use = |path: PathBuf| {
            let text = read(&path);
            let code = text
                .split("#[cfg(test)]")
                .next()
                .unwrap_or_default()
                .lines()
                .count();
            if path.ends_with("tests.rs") { 0 } else { code }
        };
        let lines: usize = sources.map(of_use).sum();
        assert!(lines <= max, "{room}: {lines} lines, at most {max}");
    }
}

#[test]
fn documents_name_what_is_there() {
    let rooms = [
        "foundation/",
        "substrate/",
        "app/",
        "bin/",
        "testing/",
        "examples/",
        "docs/",
        "xtask/",
    ];
    let mut wrong = Vec::new();
    for document in files(&[".md"]) {
        for (i, line) in read(&document).lines().enumerate() {
            // Odd pieces between backticks are code.
            for code in line.split('`').skip(1).step_by(2) {
                let path = code.split_once("::").map_or(code, |(path, _)| path);
                let is_path = rooms.iter().any(|room| path.starts_with(room))
                    && !path.contains([' ', '*', '<', '{', '…']);
                if is_path && !root().join(path).exists() {
                    wrong.push(format!(
                        "{}:{}: {path} is not there",
                        document.display(),
                        i + 1
                    ));
                }
            }
        }
    }
    assert_none("documents", &wrong);
}

#[test]
fn packages_inherit_from_the_workspace() {
    let mut wrong = Vec::new();
    for manifest in files(&["Cargo.toml"]) {
        if manifest == Path::new("Cargo.toml")
            || manifest.starts_with("examples")
            || manifest.starts_with("testing/fixtures")
        {
            continue;
        }
        let text = read(&manifest);
        let shown = manifest.display();
        for needed in [
            "version.workspace = true",
            "edition.workspace = true",
            "[lints]\nworkspace = true",
        ] {
            if !text.contains(needed) {
                wrong.push(format!("{shown}: lacks {needed:?}"));
            }
        }
        let dependencies = text.split("dependencies]").skip(1);
        for line in dependencies.flat_map(|part| part.lines().take_while(|l| !l.starts_with('['))) {
            if line.contains('=') && !line.starts_with('#') && !line.contains("workspace = true") {
                wrong.push(format!("{shown}: {line} does not inherit"));
            }
        }
    }
    assert_none("manifests", &wrong);
}

#[test]
fn environment_variables_are_documented() {
    let source = read("foundation/process/src/env.rs");
    let page = read("docs/operating/environment.md");
    let names = source.lines().filter_map(|l| l.strip_prefix("pub const "));
    let names = names.filter_map(|l| l.split('"').nth(1));
    let missing: Vec<String> = names
        .filter(|name| !page.contains(&format!("`{name}`")))
        .map(str::to_owned)
        .collect();
    assert_none("docs/operating/environment.md lacks", &missing);
}

#[test]
fn every_error_code_is_documented() {
    let page = read("docs/protocols/status.md");
    let missing: Vec<String> = tabbify_api::ErrorCode::ALL
        .iter()
        .filter(|code| !page.contains(&format!("| `{}` | {} |", code.as_str(), code.status())))
        .map(|code| format!("{} ({})", code.as_str(), code.status()))
        .collect();
    assert_none("docs/protocols/status.md lacks", &missing);
}

#[test]
fn promises_name_their_tests() {
    // Rows of promises in SPECIFICATION.md end in `path::test` or in "pending …"; other tables are
    // figures.
    let text = read("SPECIFICATION.md");
    let mut wrong = Vec::new();
    let mut rows = 0;
    let mut promises = false;
    for row in text.lines() {
        if !row.starts_with('|') {
            promises = false;
            continue;
        }
        if row.starts_with("| promise") {
            promises = true;
            continue;
        }
        if !promises || row.starts_with("|-") {
            continue;
        }
        rows += 1;
        let last = row
            .trim_end_matches('|')
            .rsplit('|')
            .next()
            .unwrap_or_default()
            .trim();
        if last.starts_with("pending") {
            continue;
        }
        let tests: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        if tests.is_empty() {
            wrong.push(format!("no test and not pending: {row}"));
        }
        for test in tests {
            let Some((path, name)) = test.rsplit_once("::") else {
                wrong.push(format!("{test}: not path::test"));
                continue;
            };
            if !root().join(path).is_file() || !read(path).contains(&format!("fn {name}(")) {
                wrong.push(format!("{test}: no such test"));
            }
        }
    }
    assert!(rows > 0, "SPECIFICATION.md has no rows");
    assert_none("SPECIFICATION.md", &wrong);
}

#[test]
fn changelog_has_the_known_form() {
    let text = read("CHANGELOG.md");
    assert!(
        text.contains("## [Unreleased]"),
        "CHANGELOG.md lacks ## [Unreleased]"
    );
    let known = [
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    ];
    let headings = text.lines().filter_map(|line| line.strip_prefix("### "));
    let wrong: Vec<String> = headings
        .filter(|heading| !known.contains(heading))
        .map(str::to_owned)
        .collect();
    assert_none("CHANGELOG.md headings", &wrong);
}

#[test]
fn decisions_are_numbered_and_whole() {
    let mut wrong = Vec::new();
    let mut numbers = BTreeSet::new();
    for path in files(&[".md"])
        .into_iter()
        .filter(|path| path.starts_with("docs/adr"))
    {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let number: Option<u32> = name.get(..4).and_then(|digits| digits.parse().ok());
        if number.is_none_or(|number| !numbers.insert(number)) {
            wrong.push(format!("{name}: no number of its own"));
        }
        let text = read(&path);
        for part in [
            "## Context",
            "## Decision",
            "## What we gave up",
            "## How we would notice",
        ] {
            if !text.contains(part) {
                wrong.push(format!("{name}: lacks {part}"));
            }
        }
    }
    assert_none("docs/adr", &wrong);
}
