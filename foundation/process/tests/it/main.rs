//! What daemons are made of, against the real log.

mod fold;
mod support;
