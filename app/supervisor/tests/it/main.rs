//! The supervisor with real runners, the real log and the real example app. Every test has its own
//! data directory, and ends every runner that it started.

mod crash;
mod hostile;
mod life;
mod outage;
mod stop;
mod support;
