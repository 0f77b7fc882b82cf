//! What runs machines: one trait, one module for each monitor.

use std::fmt;
use std::net::SocketAddr;

use tabbify_api::BoxFuture;
use tabbify_guest_init::order::Network;
use tabbify_process::Tasks;
use tokio::net::UnixStream;

use crate::bound::Bound;
use crate::error::Result;
use crate::machine::Machine;
use crate::tail::Tail;

/// Runs machines.
///
/// Law:
/// 1. [`launch`](Self::launch) returns when the machine's kernel is running or about to, or says why it
///    is not; then nothing of it is left but files in the machine's directory.
/// 2. The machine ends with the process in [`Launched`]; killing that ends it at once.
/// 3. From inside, nothing can be reached: no address of the host, of the network or of other machines.
///    From the host's loopback, the machine's ports can.
/// 4. The guest finds the drive of the image as its first and that of the volume as its second, a port
///    of a virtio console that is named [`PORT`](tabbify_guest_init::wire::PORT), and a network
///    interface for the configuration in [`Launched`].
pub trait Vmm: Send + Sync + fmt::Debug {
    /// The monitor's name, for people.
    fn name(&self) -> &'static str;

    /// Starts a machine in its directory, which is there and empty.
    fn launch<'a>(
        &'a self,
        machine: &'a Machine,
        tasks: &'a Tasks,
    ) -> BoxFuture<'a, Result<Launched>>;
}

/// A machine that runs.
#[derive(Debug)]
pub struct Launched {
    /// The monitor.
    pub(crate) process: Bound,
    /// The other end of the guest's channel.
    pub(crate) control: UnixStream,
    /// The other end of the guest's way out, if the machine has one: a port of the console that is named
    /// [`PORT`](tabbify_guest_init::way::PORT).
    pub(crate) way: Option<UnixStream>,
    /// The end of what the guest's kernel and the monitor say.
    pub(crate) console: Tail,
    /// What the guest's interface is to be.
    pub(crate) network: Option<Network>,
    /// Where the host reaches the guest's ports.
    pub(crate) addresses: Vec<(u16, SocketAddr)>,
}
