//! A router that means no good: over PCP it gives no port, and to who asks over UPnP then it says where
//! somebody else is, nothing that can be read, and more than anybody wants to hear.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::Fallible;
use crate::place::Place;

/// Where it is for the hosts behind it.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// LIMIT: bytes that one question may cost whoever asked it: a megabyte, and what is under way.
const SWALLOWED_MAX: u64 = 16 * 1024 * 1024;
/// PCP's "not authorized" (RFC 6887, section 7.4).
const NOT_AUTHORIZED: u8 = 2;

/// What it was asked.
pub(crate) struct Hostile {
    searches: Arc<AtomicU64>,
    /// The most that was taken of one answer.
    swallowed: Arc<AtomicU64>,
}

impl Hostile {
    /// In the place of the NAT. It goes on until the process ends.
    pub(crate) fn start(nat: &Place) -> Fallible<Self> {
        let sockets = nat.run(|| {
            let udp = |port| UdpSocket::bind((ROUTER, port));
            io::Result::Ok((udp(5351)?, udp(1900)?, TcpListener::bind((ROUTER, 0))?))
        })?;
        let (pcp, ssdp, http) = sockets?;
        let (searches, swallowed) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (asked, most) = (Arc::clone(&searches), Arc::clone(&swallowed));
        let port = http.local_addr()?.port();
        thread::spawn(move || refuse(&pcp));
        thread::spawn(move || mislead(&ssdp, port, &asked));
        thread::spawn(move || {
            for connection in http.incoming().flatten() {
                let most = Arc::clone(&most);
                thread::spawn(move || babble(connection, &most));
            }
        });
        Ok(Self {
            searches,
            swallowed,
        })
    }

    /// It was asked, and was not listened to for long.
    pub(crate) fn check(&self) -> Fallible<String> {
        let searches = self.searches.load(Ordering::Relaxed);
        let swallowed = self.swallowed.load(Ordering::Relaxed);
        let said = format!("{searches} searches, at most {swallowed} bytes of an answer taken");
        if searches == 0 || swallowed == 0 || swallowed > SWALLOWED_MAX {
            return Err(said.into());
        }
        Ok(said)
    }
}

/// Answers every request for a port with no.
fn refuse(socket: &UdpSocket) {
    let mut request = [0; 1100];
    while let Ok((len, from)) = socket.recv_from(&mut request) {
        if let [_, operation, _, result, ..] = &mut request[..len] {
            (*operation, *result) = (*operation | 0x80, NOT_AUTHORIZED);
            let _ = socket.send_to(&request[..len], from);
        }
    }
}

/// Answers every search, in three ways.
fn mislead(socket: &UdpSocket, port: u16, searches: &AtomicU64) {
    let device = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";
    let mut request = [0; 2048];
    while let Ok((_, from)) = socket.recv_from(&mut request) {
        searches.fetch_add(1, Ordering::Relaxed);
        let _ = socket.send_to(&[0xff; 1400], from);
        for location in [
            "http://198.51.100.2:80/elsewhere".to_owned(),
            format!("http://{ROUTER}:{port}/"),
        ] {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nST: {device}\r\nUSN: uuid:1::{device}\r\nLOCATION: {location}\r\n\r\n"
            );
            let _ = socket.send_to(answer.as_bytes(), from);
        }
    }
}

/// Answers a request, and does not end.
fn babble(mut connection: TcpStream, most: &AtomicU64) {
    let mut request = [0; 2048];
    let _ = connection.read(&mut request);
    let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\n\r\n<root>");
    let (piece, mut said) = (b"<a>".repeat(10_000), 0);
    while connection.write_all(&piece).is_ok() {
        said += piece.len() as u64;
        most.fetch_max(said, Ordering::Relaxed);
    }
}
