//! Every check there is, in the order in which they fail soonest.

use anyhow::bail;

use crate::run::{root, step, step_with};
use crate::setup;

/// Packages outside the workspace that are checked like it: built for wasm32-wasip2.
const WASM_PACKAGES: [&str; 10] = [
    "examples/hello-wasm",
    "examples/stream-wasm",
    "testing/fixtures/wasm/ask",
    "testing/fixtures/wasm/conform",
    "testing/fixtures/wasm/disk",
    "testing/fixtures/wasm/secret",
    "testing/fixtures/wasm/trap",
    "testing/fixtures/wasm/loop",
    "testing/fixtures/wasm/memory",
    "testing/fixtures/wasm/no-handler",
];

/// What makes clippy the compiler of our own crates: one pass lints and builds, so that nothing we
/// depend on is checked for the one and compiled once more for the other, which takes minutes. Every
/// step has it, for theirs to be the same artifacts; as an option, since a variable would reach the
/// builds of apps that tests start.
const CLIPPY: &str = r#"--config=build.rustc-workspace-wrapper="clippy-driver""#;
/// Its lints are errors.
const STRICT: (&str, &str) = ("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings");

/// `cargo xtask check`.
pub(crate) fn check() -> anyhow::Result<()> {
    format()?;
    build()?;
    step_with(
        &[
            "cargo",
            "nextest",
            "run",
            CLIPPY,
            "--workspace",
            "--lib",
            "--bins",
            "--test",
            "tidy",
        ],
        &[STRICT],
    )
}

/// `cargo xtask test`.
pub(crate) fn test(long: bool) -> anyhow::Result<()> {
    setup::compiler()?;
    setup::wasm_target()?;
    setup::tools()?;
    setup::postgresql();
    setup::networks();
    setup::wireguard();
    setup::containers();
    setup::machines();
    format()?;
    step(&[
        "cargo",
        "deny",
        "--log-level",
        "error",
        "check",
        "bans",
        "licenses",
        "sources",
    ])?;
    step(&["cargo-machete"])?;
    build()?;
    let length = if long { "long" } else { "bounded" };
    let length = [STRICT, ("TABBIFY_TEST_LENGTH", length)];
    let nextest = ["cargo", "nextest", "run", CLIPPY, "--workspace"];
    let ordinary = [&nextest[..], &["--no-fail-fast"]].concat();
    let documented = ["cargo", "test", CLIPPY, "--workspace", "--doc", "--quiet"];
    let end_to_end = [&nextest[..], &["--no-fail-fast", "--profile", "e2e"]].concat();
    // What fails in one does not hide what fails in the next.
    let results = [
        step_with(&ordinary, &length),
        step_with(&documented, &[STRICT]),
        step_with(&end_to_end, &length),
    ];
    for profile in ["default", "e2e"] {
        not_run(profile);
    }
    let failed: Vec<String> = results
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!("{}", failed.join("\n"))
}

/// Lists what could not run on this machine: tests that say so pass, and are no proof.
fn not_run(profile: &str) {
    let report = root()
        .join("target/nextest")
        .join(profile)
        .join("junit.xml");
    let text = std::fs::read_to_string(&report).unwrap_or_default();
    let mut said: Vec<&str> = text
        .lines()
        .filter_map(|line| line.find("NOT RUN").map(|at| &line[at..]))
        .collect();
    said.sort_unstable();
    said.dedup();
    for line in said {
        println!("── {line}");
    }
}

fn format() -> anyhow::Result<()> {
    step(&["cargo", "fmt", "--all", "--check"])?;
    for package in WASM_PACKAGES {
        let manifest = format!("{package}/Cargo.toml");
        step(&["cargo", "fmt", "--manifest-path", &manifest, "--check"])?;
    }
    Ok(())
}

/// Lints and builds everything in one go: with the same features as the tests, so that no dependency
/// is built twice, and with the programs that the end-to-end tests start.
fn build() -> anyhow::Result<()> {
    step_with(
        &["cargo", "build", CLIPPY, "--workspace", "--all-targets"],
        &[STRICT],
    )
}
