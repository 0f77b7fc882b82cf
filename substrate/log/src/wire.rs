//! What crosses the network, both directions of each shape side by side: `query` what to read;
//! `event` one event as a line of JSON and `sse` a subscription, for browsers and people; `frames`
//! messages with a length and `binary` what is in them, for services; `problem` refusals.
//! Written down in docs/protocols/log-http.md.

pub(crate) mod binary;
pub(crate) mod event;
pub(crate) mod frames;
pub(crate) mod problem;
pub(crate) mod query;
pub(crate) mod sse;
