//! The log through its public interface, on real files and real sockets.
//!
//! What every implementation and transport must do is in the modules that `conformance` lists, and runs
//! on each of them. `postgres` is of the engine in PostgreSQL, the others of the embedded one alone.

mod conformance;

mod concurrency;
mod consumers;
mod scope;
mod semantics;
mod subscriptions;

mod bad_input;
mod checkpoints;
mod cold;
mod crash;
mod disks;
mod durability;
mod http;
mod model;
mod postgres;
mod recovery;
mod restore;
mod serving;
mod sessions;
mod signed;
mod support;
