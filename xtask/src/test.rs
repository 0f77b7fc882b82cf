//! Every check there is, in the order in which they fail soonest.

use crate::run::{step, step_with};
use crate::setup;

/// Packages outside the workspace that are checked like it: built for wasm32-wasip2.
const WASM_PACKAGES: [&str; 6] = [
    "examples/hello-wasm",
    "examples/stream-wasm",
    "testing/fixtures/wasm/trap",
    "testing/fixtures/wasm/loop",
    "testing/fixtures/wasm/memory",
    "testing/fixtures/wasm/no-handler",
];

/// `cargo xtask check`.
pub(crate) fn check() -> anyhow::Result<()> {
    format()?;
    lint()?;
    step(&[
        "cargo",
        "nextest",
        "run",
        "--workspace",
        "--lib",
        "--bins",
        "--test",
        "tidy",
    ])
}

/// `cargo xtask test`.
pub(crate) fn test(long: bool) -> anyhow::Result<()> {
    setup::compiler()?;
    setup::wasm_target()?;
    setup::tools()?;
    setup::postgresql();
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
    lint()?;
    // Everything in one go: with the same features as the tests, so that no dependency is built
    // twice, and with the programs that the end-to-end tests start.
    step(&["cargo", "build", "--workspace", "--all-targets"])?;
    let length = if long { "long" } else { "bounded" };
    step_with(
        &["cargo", "nextest", "run", "--workspace", "--no-fail-fast"],
        &[("TABBIFY_TEST_LENGTH", length)],
    )?;
    step(&["cargo", "test", "--workspace", "--doc", "--quiet"])?;
    step_with(
        &[
            "cargo",
            "nextest",
            "run",
            "--workspace",
            "--profile",
            "e2e",
            "--no-fail-fast",
        ],
        &[("TABBIFY_TEST_LENGTH", length)],
    )
}

fn format() -> anyhow::Result<()> {
    step(&["cargo", "fmt", "--all", "--check"])?;
    for package in WASM_PACKAGES {
        let manifest = format!("{package}/Cargo.toml");
        step(&["cargo", "fmt", "--manifest-path", &manifest, "--check"])?;
    }
    Ok(())
}

fn lint() -> anyhow::Result<()> {
    step(&[
        "cargo",
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])
}
