//! The log through its public interface, on real files and real sockets.
//!
//! What every implementation and transport must do is in the modules that `conformance` lists; each
//! of their cases runs in process and over HTTP. The others are of the embedded engine alone.

mod conformance;

mod concurrency;
mod consumers;
mod scope;
mod semantics;
mod subscriptions;

mod crash;
mod durability;
mod http;
mod model;
mod recovery;
mod support;
