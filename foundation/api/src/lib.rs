//! The contract of every interface between processes: shapes, paths, error codes, traits.
//!
//! Server and client import the same types, so that a half-change does not compile. One module per
//! interface, in the order in which a push meets them: [`error`] is what every refusal looks like,
//! [`contexts`] and [`auth`] sign in, [`apps`] is the node's REST, [`artifact`] what an upload becomes, [`log`]
//! where it is recorded, [`consumers`] who works on
//! what was recorded, [`mesh`] who may be dialed, [`policy`] by whom, [`coordinator`] who is asked for
//! both over a network, [`device`] who of people's machines comes in through a gateway,
//! [`names`] what they are called, [`doorbell`] how an idle one of them is woken, [`endpoint`] what a process tells of its end of
//! the mesh, [`machines`] what runs where, [`runner`] how a supervisor talks to a runner,
//! [`secrets`] what only an app itself may read, [`volumes`] what it
//! keeps, [`attach`] how people reach into it, [`read`] what can be asked about all of it, [`fold`] what every role keeps of it in memory.

pub mod apps;
pub mod artifact;
pub mod attach;
pub mod auth;
pub mod consumers;
pub mod contexts;
pub mod coordinator;
pub mod device;
pub mod doorbell;
pub mod endpoint;
pub mod error;
pub mod fold;
pub mod log;
pub mod logs;
pub mod machines;
pub mod mesh;
pub mod names;
pub mod policy;
pub mod read;
pub mod runner;
pub mod secrets;
pub mod volumes;

pub use error::{ErrorCode, Problem};

/// A boxed future, for the traits that tests and transports replace.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
