//! HTTP/1.1 between our processes: [`Server`] serves the connections of a role within limits, [`Client`]
//! keeps those to one. What is said over them is the role's own; who may connect is its socket's.
//!
//! Plane: both. Spawns one task a connection, on the [`Tasks`](tabbify_process::Tasks) it was made
//! with; owns no channel.

mod accept;
pub mod answer;
mod authorization;
mod client;
pub mod ndjson;
mod patience;
mod server;
mod upgrade;

pub use accept::{Accept, Origin};
pub use authorization::{Twice, bearer, presented};
pub use client::{Again, Answer, AnswerError, Client, Connection};
pub use server::{Handle, Limits, Place, Server};
pub use upgrade::{tokens, wanted_upgrade};
