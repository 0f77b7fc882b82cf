//! One device, and all of them, hold so many connections and no more.

use tabbify_mesh::{DialError, Stream};
use tabbify_mesh_gateway::Limits;
use tabbify_types::{APP_PORT, Tenant};
use tokio::time::timeout;

use crate::net::{Fallible, Net, WATCHDOG, to, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded_per_device_and_in_all() -> Fallible {
    let limits = Limits {
        connections_per_device: 4,
        connections: 6,
        ..Limits::default()
    };
    let net = Net::new(limits)?;
    let (app, address) = net.app(&Tenant::main())?;
    let mut listener = app.listen(APP_PORT)?;
    let (_anna, first) = net.device("user:anna", "laptop").await?;
    let (_ben, second) = net.device("user:ben", "laptop").await?;
    let mut held: Vec<(Stream, Stream)> = Vec::new();
    for client in [&first, &first, &first, &first, &second, &second] {
        let near = timeout(WATCHDOG, client.dial(to(address))).await??;
        let far = timeout(WATCHDOG, listener.accept()).await??.stream;
        held.push((near, far));
    }
    until("all are there", || net.gateway.stats().connections == 6).await?;
    for client in [&first, &second] {
        let refused = timeout(WATCHDOG, client.dial(to(address))).await?;
        assert!(matches!(refused, Err(DialError::Refused(_))), "{refused:?}");
    }
    assert!(net.gateway.stats().refused_full >= 1);
    // What ends makes room.
    held.truncate(5);
    until("one has ended", || net.gateway.stats().connections == 5).await?;
    let again = timeout(WATCHDOG, second.dial(to(address))).await?;
    assert!(again.is_ok(), "{again:?}");
    Ok(())
}
