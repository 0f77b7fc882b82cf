//! The way to a service of the platform, over the runner's own mesh: whoever is there knows by its key and
//! its address which instance asks.

use std::io;
use std::net::SocketAddrV6;

use tabbify_api::BoxFuture;
use tabbify_mesh::Mesh;
use tabbify_process::connect::{Connect, Stream};

/// Streams of the mesh to one place.
#[derive(Debug)]
pub(crate) struct Dial {
    pub(crate) mesh: Mesh,
    pub(crate) address: SocketAddrV6,
}

impl Connect for Dial {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let dialed = self.mesh.dial(self.address).await;
            let stream = dialed.map_err(io::Error::other)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}
