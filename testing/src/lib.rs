//! The vocabulary of the end-to-end tests: a platform of real processes in a directory of its own,
//! a client that streams, and waiting for conditions under a watchdog.
//!
//! Everything here returns `Result`: a test unwraps, its helpers do not.

pub mod apart;
pub mod catalog;
pub mod dns;
pub mod dockerd;
pub mod guest;
pub mod http;
pub mod image;
pub mod machine;
pub mod place;
pub mod platform;
pub mod process;
pub mod role;
pub mod stock;
pub mod wait;

pub use platform::Platform;

/// Whether the long versions were asked for (`cargo xtask test --long`).
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "tests take their length from the environment"
)]
pub fn long() -> bool {
    std::env::var("TABBIFY_TEST_LENGTH").is_ok_and(|length| length == "long")
}
