//! What crosses the network, both directions of each shape side by side: `event` one event as a line
//! of JSON, `query` what to read, `sse` a subscription, `problem` refusals.

pub(crate) mod event;
pub(crate) mod problem;
pub(crate) mod query;
pub(crate) mod sse;
