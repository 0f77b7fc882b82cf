//! What crosses the loopback interface: a marker in a body is seen between the client and the node,
//! where the protocol is plain HTTP, and never between node and runner.

use std::io::Read as _;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, ensure};
use hyper::Request;
use socket2::{Domain, Protocol, Socket, Type};
use tabbify_testing::{Platform, http};

/// `ETH_P_ALL`: every protocol, in both directions (packet(7)).
const EVERY_PROTOCOL: u16 = 0x0003;
const MARKER: &[u8] = b"TABBIFY-MARKER-4f1c9e70";

/// Counts packets with the marker, by whether the node's port is one end of them.
struct Capture {
    stop: Arc<AtomicBool>,
    packets: Arc<AtomicUsize>,
    udp: Arc<AtomicUsize>,
    plain: Arc<AtomicUsize>,
    elsewhere: Arc<AtomicUsize>,
}

fn port(packet: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(
        packet.get(offset..offset + 2)?.try_into().ok()?,
    ))
}

impl Capture {
    fn start(socket: Socket, node: u16) -> anyhow::Result<Self> {
        socket.set_read_timeout(Some(std::time::Duration::from_millis(100)))?;
        socket.set_recv_buffer_size(16 << 20)?;
        let capture = Self {
            stop: Arc::default(),
            packets: Arc::default(),
            udp: Arc::default(),
            plain: Arc::default(),
            elsewhere: Arc::default(),
        };
        let (stop, packets, udp) = (
            capture.stop.clone(),
            capture.packets.clone(),
            capture.udp.clone(),
        );
        let (plain, elsewhere) = (capture.plain.clone(), capture.elsewhere.clone());
        std::thread::spawn(move || {
            let mut packet = vec![0; 70_000];
            while !stop.load(Ordering::Relaxed) {
                // A timeout looks at the flag again.
                let Ok(length) = (&socket).read(&mut packet) else {
                    continue;
                };
                let packet = &packet[..length];
                packets.fetch_add(1, Ordering::Relaxed);
                // Ethernet header 14 bytes, then IPv4: protocol at 9, header length in words at 0.
                let header = packet.get(14).map_or(0, |b| usize::from(b & 0x0f) * 4);
                if packet.get(14 + 9) == Some(&17) {
                    udp.fetch_add(1, Ordering::Relaxed);
                }
                if packet.windows(MARKER.len()).any(|window| window == MARKER) {
                    let ends = [port(packet, 14 + header), port(packet, 16 + header)];
                    let tcp = packet.get(14 + 9) == Some(&6);
                    let counter = if tcp && ends.contains(&Some(node)) {
                        &plain
                    } else {
                        &elsewhere
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
            // Nothing waits for this socket; closing it cannot fail in a way that matters.
            let _ = socket.shutdown(Shutdown::Both);
        });
        Ok(capture)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn app_traffic_is_encrypted_between_node_and_runner() -> anyhow::Result<()> {
    let protocol = Protocol::from(i32::from(EVERY_PROTOCOL.to_be()));
    let socket = match Socket::new(Domain::PACKET, Type::RAW, Some(protocol)) {
        Ok(socket) => socket,
        Err(error) => {
            println!(
                "NOT RUN: app_traffic_is_encrypted_between_node_and_runner: capturing needs CAP_NET_RAW: {error}"
            );
            return Ok(());
        }
    };
    let platform = Platform::start().await?;
    let folder = platform.copy_app("examples/stream-wasm", "stream-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    let token = platform.token().await?;
    let node: u16 = platform
        .authority
        .rsplit(':')
        .next()
        .context("port")?
        .parse()?;

    let capture = Capture::start(socket, node)?;
    for _ in 0..20 {
        let request = Request::post(format!("/app/{id}/echo"))
            .header("host", &platform.authority)
            .header("authorization", format!("Bearer {token}"))
            .body(http::full(MARKER))?;
        let answer = http::send(&platform.authority, request).await?;
        ensure!(http::text(answer).await?.as_bytes() == MARKER, "the echo");
    }
    tabbify_testing::wait::until("the capture sees the plain leg", async || {
        (capture.plain.load(Ordering::Relaxed) >= 40).then_some(())
    })
    .await?;
    capture.stop.store(true, Ordering::Relaxed);
    let (packets, udp) = (
        capture.packets.load(Ordering::Relaxed),
        capture.udp.load(Ordering::Relaxed),
    );
    let elsewhere = capture.elsewhere.load(Ordering::Relaxed);
    println!("{packets} packets, {udp} of them UDP; the marker elsewhere: {elsewhere}");
    // The tunnel was used at all: twenty requests are at least forty datagrams.
    ensure!(udp >= 40, "{udp} UDP packets");
    ensure!(
        elsewhere == 0,
        "the marker crossed an interface unencrypted {elsewhere} times"
    );
    Ok(())
}
