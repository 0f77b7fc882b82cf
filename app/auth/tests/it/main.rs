//! Auth on the real log.

mod http;
mod join;
mod people;
mod policy;
mod rotate;
mod sign_in;
mod snapshot;
mod support;
mod together;
mod tokens;
