//! The log through its public interface, on real files.

mod concurrency;
mod crash;
mod model;
mod recovery;
mod scope;
mod semantics;
mod subscriptions;
mod support;
