//! The coordinator on the real log, with the real auth, over real sockets.

mod conformance;
mod flood;
mod grant;
mod join;
mod log;
mod network;
mod outage;
mod platform;
mod policy;
mod scale;
mod support;
mod watch;
