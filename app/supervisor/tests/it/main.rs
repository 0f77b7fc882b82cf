//! The supervisor with real runners, the real log and the real example app. Every test has its own
//! data directory, and ends every runner that it started.

mod adopt;
mod crash;
mod hostile;
mod idle;
mod life;
mod outage;
#[expect(
    dead_code,
    reason = "the runner's tests, whose platform it is, use more of it"
)]
#[path = "../../../runner/tests/it/platform.rs"]
mod platform;
mod points;
mod stop;
mod support;
mod tickets;
