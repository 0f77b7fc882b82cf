//! The compiled `tcli` as a person meets it: its output, its exit codes, what it leaves on disk, and
//! what it sends, against a small HTTP server that speaks the contract and can break on purpose.
//!
//! The real node is met in the end-to-end tests; here every fault can be had at will.

mod credentials;
mod deploy;
mod init;
mod lock;
mod machines;
mod network;
mod node;
mod person;
mod push;
mod secrets;
mod views;
