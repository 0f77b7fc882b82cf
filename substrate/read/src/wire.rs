//! What crosses a network between a read node and who asks it.

pub(crate) mod problem;
pub(crate) mod query;
