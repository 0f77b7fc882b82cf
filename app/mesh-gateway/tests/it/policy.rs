//! What a person may not reach is refused at once, and cut when it is taken away.

use std::io::ErrorKind;
use std::net::SocketAddrV6;

use tabbify_mesh::{DialError, Listener, Stream};
use tabbify_mesh_gateway::Limits;
use tabbify_types::event::v1::AllowRule;
use tabbify_types::{APP_PORT, HostUla, Tenant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use crate::net::{Fallible, NOBODY, Net, WATCHDOG, to, until};

fn rule(from: &str, to: &str, ports: &[u16]) -> AllowRule {
    AllowRule {
        from: from.to_owned(),
        to: to.to_owned(),
        ports: ports.to_vec(),
    }
}

/// A connection that both ends have used.
async fn connected(
    client: &tabbify_mesh::Mesh,
    at: SocketAddrV6,
    listener: &mut Listener,
) -> Fallible<(Stream, Stream)> {
    let both = async {
        let mut near = client.dial(at).await?;
        near.write_all(b"hello").await?;
        let mut far = listener.accept().await?.stream;
        let mut said = [0; 5];
        far.read_exact(&mut said).await?;
        assert_eq!(&said, b"hello");
        far.write_all(&said).await?;
        near.read_exact(&mut said).await?;
        Fallible::Ok((near, far))
    };
    timeout(WATCHDOG, both).await?
}

/// Both ends of a cut connection hear of it: half of something is not taken for all of it.
async fn is_cut(mut near: Stream, mut far: Stream) -> Fallible {
    for stream in [&mut near, &mut far] {
        let ended = timeout(WATCHDOG, stream.read(&mut [0; 8])).await?;
        let kind = ended.map_err(|error| error.kind());
        assert!(
            matches!(kind, Err(ErrorKind::ConnectionReset | ErrorKind::TimedOut)),
            "{kind:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenants_app_is_refused_until_a_rule_opens_it() -> Fallible {
    let net = Net::new(Limits::default())?;
    let other: Tenant = "other".parse()?;
    let (_mine, own) = net.app(&Tenant::main())?;
    let (app, theirs) = net.app(&other)?;
    let mut listener = app.listen(9000)?;
    let _second = app.listen(9001)?;
    let (_device, client) = net.device("user:anna", "laptop").await?;
    let at = |port| SocketAddrV6::new(theirs, port, 0, 0);
    let refused = async |at| {
        let refused = timeout(WATCHDOG, client.dial(at)).await?;
        assert!(matches!(refused, Err(DialError::Refused(_))), "{refused:?}");
        Fallible::Ok(())
    };
    refused(at(9000)).await?;
    // Nobody is there, which looks the same.
    refused(SocketAddrV6::new(NOBODY, 80, 0, 0)).await?;
    refused(SocketAddrV6::new(HostUla::new(1, 1).addr(), 8700, 0, 0)).await?;
    assert_eq!(net.gateway.stats().refused, 3);

    // To other people, then to this one, to one port.
    net.people
        .rules(&other, vec![rule("user:ben", "tenant:other", &[])]);
    refused(at(9000)).await?;
    let ours = rule("user:anna", "tenant:other", &[9000]);
    net.people.rules(&other, vec![ours]);
    let (near, far) = connected(&client, at(9000), &mut listener).await?;
    refused(at(9001)).await?;
    // The person's own tenant is open, but nobody listens there: refused by the app's machine.
    let nobody = timeout(WATCHDOG, async {
        let mut stream = client.dial(to(own)).await?;
        Fallible::Ok(stream.read(&mut [0; 8]).await.map_err(|error| error.kind()))
    });
    assert_eq!(nobody.await??, Err(ErrorKind::ConnectionReset));
    assert_eq!(net.gateway.stats().unreachable, 1);

    let began = Instant::now();
    net.people.rules(&other, Vec::new());
    is_cut(near, far).await?;
    eprintln!(
        "a rule taken away → its connection cut: {:?}",
        began.elapsed()
    );
    refused(at(9000)).await?;
    assert_eq!(net.gateway.stats().cut, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_device_is_cut_off_and_the_others_go_on() -> Fallible {
    let net = Net::new(Limits::default())?;
    let (app, address) = net.app(&Tenant::main())?;
    let mut listener = app.listen(APP_PORT)?;
    let (anna, client) = net.device("user:anna", "laptop").await?;
    let (_ben, other) = net.device("user:ben", "laptop").await?;
    let (near, far) = connected(&client, to(address), &mut listener).await?;
    let (mut stays, mut serves) = connected(&other, to(address), &mut listener).await?;

    let began = Instant::now();
    net.remove(&anna).await?;
    is_far_cut(far).await?;
    eprintln!(
        "a device removed → its connection cut: {:?}",
        began.elapsed()
    );
    until("its session ends", || net.gateway.stats().devices == 1).await?;
    drop(near);
    // It is a stranger from here on.
    let refused = timeout(WATCHDOG, client.dial(to(address))).await?;
    assert!(refused.is_err(), "{refused:?}");

    stays.write_all(b"still").await?;
    let mut said = [0; 5];
    timeout(WATCHDOG, serves.read_exact(&mut said)).await??;
    assert_eq!(&said, b"still");
    Ok(())
}

/// The app's end of a connection whose device may not hear of it any more.
async fn is_far_cut(mut far: Stream) -> Fallible {
    let ended = timeout(WATCHDOG, far.read(&mut [0; 8])).await?;
    assert!(ended.is_err(), "{ended:?}");
    Ok(())
}
