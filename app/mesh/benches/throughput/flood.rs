//! What a flood of handshakes leaves of a stream: 5,000 packets a second to the receiver's port, beside
//! the same packets to a port that nobody has.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tabbify_mesh::PrivateKey;
use tokio::time::Instant;

use crate::Fallible;
use crate::initiations;
use crate::lab::{Lab, Measured, PORT, outer};

const PER_SECOND: u128 = 5000;
/// Between two salvos.
const PAUSE: Duration = Duration::from_millis(3);
/// Different ones, sent again and again.
const PACKETS: usize = 5000;
/// Nobody has it.
const CLOSED: u16 = 9;
/// Addresses that a flood from everywhere comes from.
const SOURCES: u8 = 200;

/// What a flood is made of.
pub(crate) const KINDS: [(&str, &str); 3] = [
    ("one", "initiations from one address"),
    ("many", "initiations from 200 addresses"),
    ("noise", "forged initiations"),
];

/// Ours over the kernel's stack during a flood of this kind, to the open port or to a closed one.
pub(crate) fn measure(lab: &Lab, kind: &str, open: bool, seconds: u64) -> Fallible<Measured> {
    let port = if open { PORT } else { CLOSED };
    let flood = lab.background(1, &["flood", kind, &port.to_string()])?;
    let measured = lab.ours("kernel", 1, seconds);
    drop(flood);
    measured
}

/// Floods end 2 until it is killed.
#[expect(
    clippy::disallowed_methods,
    reason = "a program that only sends, at a pace"
)]
pub(crate) fn run(kind: &str, port: u16) -> Fallible {
    let key = PrivateKey::from_bytes(&[2; 32]).public();
    let packets = match kind {
        "noise" => initiations::noise(PACKETS),
        _ => initiations::strangers(key, PACKETS),
    };
    let sources = match kind {
        "many" => SOURCES,
        _ => 1,
    };
    let sources = (1..=sources).map(|n| UdpSocket::bind((Ipv4Addr::new(10, 77, 1, n), 0)));
    let sources: Vec<UdpSocket> = sources.collect::<Result<_, _>>()?;
    let to = SocketAddr::from((outer(2), port));
    println!("ready");
    let (began, mut sent) = (Instant::now(), 0_usize);
    loop {
        while (sent as u128) < began.elapsed().as_micros() * PER_SECOND / 1_000_000 {
            // What the kernel has no room for is lost, as on any network.
            let _ = sources[sent % sources.len()].send_to(&packets[sent % packets.len()], to);
            sent += 1;
        }
        std::thread::sleep(PAUSE);
    }
}
