//! One connection: dialed over the mesh, then bytes both ways until both sides have ended, or it is cut.
//! The end of one direction is passed on, and the other goes on.

use std::io;
use std::sync::atomic::AtomicU64;

use tabbify_mesh::{Incoming, Mesh, Stream};
use tabbify_process::chain;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};

use crate::live::Place;
use crate::stats::{Counters, add, count};

/// LIMIT: bytes under way in each direction, beside the buffers of the two connections.
const ROOM: usize = 16 * 1024;

/// Carries a connection to its end.
pub(crate) async fn carry(incoming: Incoming, place: Place, mesh: &Mesh, counters: &Counters) {
    let (to, mut near) = (incoming.local, incoming.stream);
    let dialed = tokio::select! {
        dialed = mesh.dial(to) => dialed,
        () = place.cut.cancelled() => {
            count(&counters.cut);
            return near.reset();
        }
    };
    let mut far = match dialed {
        Ok(far) => far,
        Err(error) => {
            tracing::debug!(%to, error = %chain(&error), "not reached");
            count(&counters.unreachable);
            return near.reset();
        }
    };
    count(&counters.carried);
    let ended = tokio::select! {
        ended = both(&mut near, &mut far, counters) => ended,
        () = place.cut.cancelled() => {
            count(&counters.cut);
            Err(io::ErrorKind::PermissionDenied.into())
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%to, %error, "broken off");
        // Neither may take half of it for the whole.
        near.reset();
        far.reset();
    }
}

async fn both(near: &mut Stream, far: &mut Stream, counters: &Counters) -> io::Result<()> {
    let (from_near, to_near) = split(near);
    let (from_far, to_far) = split(far);
    let up = pump(from_near, to_far, &counters.bytes_up);
    let down = pump(from_far, to_near, &counters.bytes_down);
    tokio::try_join!(up, down).map(drop)
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    bytes: &AtomicU64,
) -> io::Result<()> {
    let mut room = vec![0; ROOM];
    loop {
        let len = from.read(&mut room).await?;
        if len == 0 {
            return to.shutdown().await;
        }
        to.write_all(&room[..len]).await?;
        add(bytes, len);
    }
}
