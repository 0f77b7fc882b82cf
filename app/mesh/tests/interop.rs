//! Another implementation at the other end: `boringtun`, with packets made by hand.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use tabbify_api::BoxFuture;
use tabbify_api::mesh::{PeerRecord, ResolveError, Resolver};
use tabbify_mesh::{Config, Mesh, PrivateKey};
use tabbify_process::Tasks;
use tabbify_types::{APP_PORT, MeshKey};

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const OURS: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f02, 2, 0, 0, 0, 0, 1);
const THEIRS: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f02, 1, 0, 0, 0, 0, 1);
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const SEQUENCE: u32 = 0x0102_0304;

/// Knows one peer, under any name.
#[derive(Debug)]
struct Only(PeerRecord);

impl Resolver for Only {
    fn by_address(&self, _: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        Box::pin(async { Ok(self.0.clone()) })
    }

    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        Box::pin(async move {
            if key == self.0.key {
                Ok(self.0.clone())
            } else {
                Err(ResolveError::UnknownKey(key))
            }
        })
    }
}

fn checksum(packet: &[u8]) -> u16 {
    let pseudo = [0, 0, 0, 20, 0, 0, 0, 6];
    let bytes = packet[8..40].iter().chain(&pseudo).chain(&packet[40..60]);
    let bytes: Vec<u8> = bytes.copied().collect();
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|b| u32::from(u16::from_be_bytes([b[0], b[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(!sum & 0xffff).unwrap_or(0)
}

/// A SYN from 49152, with a checksum.
fn syn() -> Vec<u8> {
    let mut packet = vec![0; 60];
    packet[0] = 0x60;
    packet[5] = 20;
    packet[6] = 6;
    packet[7] = 64;
    packet[8..24].copy_from_slice(&THEIRS.octets());
    packet[24..40].copy_from_slice(&OURS.octets());
    packet[40..42].copy_from_slice(&49152u16.to_be_bytes());
    packet[42..44].copy_from_slice(&APP_PORT.to_be_bytes());
    packet[44..48].copy_from_slice(&SEQUENCE.to_be_bytes());
    packet[52] = 5 << 4;
    packet[53] = SYN;
    packet[54..56].copy_from_slice(&0x4000u16.to_be_bytes());
    let sum = checksum(&packet);
    packet[56..58].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Handshakes, sends `packet` and returns the inner packet that comes back.
fn exchange(
    tunn: &mut Tunn,
    socket: &UdpSocket,
    to: SocketAddr,
    packet: &[u8],
) -> Fallible<Vec<u8>> {
    let (mut buf, mut datagram) = (vec![0; 2048], vec![0; 2048]);
    if let TunnResult::WriteToNetwork(initiation) = tunn.encapsulate(packet, &mut buf) {
        socket.send_to(initiation, to)?;
    }
    loop {
        let (len, _) = socket.recv_from(&mut datagram)?;
        let mut input = &datagram[..len];
        loop {
            match tunn.decapsulate(None, input, &mut buf) {
                TunnResult::WriteToNetwork(reply) => {
                    socket.send_to(reply, to)?;
                    // Asked again with nothing, it gives what had waited for the handshake.
                    input = &[];
                }
                TunnResult::WriteToTunnelV6(inner, _) => return Ok(inner.to_vec()),
                TunnResult::Done => break,
                other => return Err(format!("{other:?}").into()),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boringtun_gets_a_syn_ack() -> Fallible {
    let secret = StaticSecret::from(tabbify_process::random::<32>());
    let record = PeerRecord::unrestricted(
        MeshKey(PublicKey::from(&secret).to_bytes()),
        vec![THEIRS],
        Vec::new(),
    );
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config::new(PrivateKey::generate(), vec![OURS], loopback);
    let mesh = Mesh::bind(config, Arc::new(Only(record)), &Tasks::new())?;
    let _listener = mesh.listen(APP_PORT)?;
    let to = mesh.underlay_addr()?;

    let ours = PublicKey::from(mesh.public_key().0);
    let mut tunn = Tunn::new(secret, ours, None, None, 7, None);
    let socket = UdpSocket::bind(loopback)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let answer = tokio::task::spawn_blocking(move || exchange(&mut tunn, &socket, to, &syn()));
    let answer = answer.await??;

    assert_eq!(answer[8..24], OURS.octets());
    assert_eq!(answer[24..40], THEIRS.octets());
    assert_eq!(answer[53], SYN_ACK);
    assert_eq!(answer[48..52], (SEQUENCE + 1).to_be_bytes());
    assert_eq!(mesh.stats().handshakes, 1);
    Ok(())
}
