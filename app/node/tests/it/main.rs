//! The node from outside: real TCP, a real log on disk, a real object store, and apps that are real
//! HTTP servers behind the dial seam. Only the authority is a stand-in, with tokens that are words.

mod app;
mod framing;
mod harness;
mod http_client;
mod machines;
mod outage;
mod proxy;
mod replicas;
mod rest;
mod revoked;
mod secrets;
mod streaming;
mod upload;
mod vault;
