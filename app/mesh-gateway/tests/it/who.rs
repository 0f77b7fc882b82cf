//! Recorded devices get through, whole and both ways; nobody else gets an answer.

use tabbify_mesh::{DialError, PrivateKey};
use tabbify_mesh_gateway::Limits;
use tabbify_types::{APP_PORT, Tenant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::net::{Fallible, Net, WATCHDOG, to, until};

/// More than all buffers on the way hold.
const LEN: usize = 3 * 1024 * 1024;

fn bytes(seed: u8) -> Vec<u8> {
    (0..LEN)
        .map(|i| u8::try_from((i * 31 + usize::from(seed)) % 251).unwrap_or(0))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_reaches_an_app_and_each_end_is_passed_on() -> Fallible {
    let net = Net::new(Limits::default())?;
    let (app, address) = net.app(&Tenant::main())?;
    let (device, client) = net.device("user:anna", "laptop").await?;
    assert_eq!(device.address.to_string(), "fd5a:1f01:0:1::1");
    let mut listener = app.listen(APP_PORT)?;

    let served = async {
        let mut stream = listener.accept().await?.stream;
        let mut question = Vec::new();
        stream.read_to_end(&mut question).await?;
        // The other direction is open after the first has ended.
        stream.write_all(&bytes(2)).await?;
        stream.shutdown().await?;
        Fallible::Ok(question)
    };
    let asked = async {
        let mut stream = client.dial(to(address)).await?;
        stream.write_all(&bytes(1)).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Fallible::Ok(answer)
    };
    let (question, answer) = timeout(WATCHDOG, async { tokio::try_join!(served, asked) }).await??;
    assert!(
        question == bytes(1) && answer == bytes(2),
        "content differs"
    );
    until("the connection ends", || {
        net.gateway.stats().connections == 0
    })
    .await?;
    let stats = net.gateway.stats();
    assert_eq!((stats.carried, stats.refused, stats.cut), (1, 0, 0));
    assert_eq!((stats.bytes_up, stats.bytes_down), (LEN as u64, LEN as u64));
    assert_eq!(stats.devices, 1);
    // It came from the host's end, whose key the app knows: the device's is nobody's there.
    assert_eq!(app.stats().dropped_unknown_key, 0);
    assert!(net.tasks.failure().is_none(), "{:?}", net.tasks.failure());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_no_answer_and_nobody_speaks_for_another() -> Fallible {
    let net = Net::new(Limits::default())?;
    let (app, address) = net.app(&Tenant::main())?;
    let _listener = app.listen(APP_PORT)?;
    let (anna, client) = net.device("user:anna", "laptop").await?;
    timeout(WATCHDOG, client.dial(to(address))).await??;

    let stranger = net.client(PrivateKey::generate(), anna.address.addr())?;
    let refused = timeout(WATCHDOG, stranger.dial(to(address))).await?;
    assert!(
        matches!(refused, Err(DialError::Unreachable(_))),
        "{refused:?}"
    );
    assert!(net.gateway.wire_stats().dropped_unknown_key > 0);

    // A device that is recorded, but speaks from another's address.
    let key = PrivateKey::generate();
    let order = tabbify_api::device::DeviceOrder {
        user: "user:ben".to_owned(),
        tenant: Tenant::main(),
        name: "phone".parse()?,
        key: key.public(),
    };
    let people = &net.people;
    let ben = tabbify_api::device::Devices::add(&**people, order, "test".to_owned()).await;
    assert_ne!(ben.map_err(|problem| problem.detail)?.address, anna.address);
    let liar = net.client(key, anna.address.addr())?;
    let refused = timeout(WATCHDOG, liar.dial(to(address))).await?;
    assert!(refused.is_err(), "{refused:?}");
    assert!(net.gateway.wire_stats().dropped_spoofed_source > 0);
    assert_eq!(net.gateway.stats().carried, 1);
    Ok(())
}
