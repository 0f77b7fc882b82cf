//! The coordinator on the real log, with the real auth, over real sockets.

mod conformance;
mod crash;
mod cut;
mod devices;
mod flood;
mod grant;
mod join;
mod log;
mod machines;
mod names;
mod network;
mod outage;
mod platform;
mod policy;
mod scale;
mod support;
mod watch;
