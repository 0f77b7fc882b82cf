//! The one way out: from a name and a port to a connection, or to the reason why there is none.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::ranges::closed;
use crate::resolve::{Resolve, SystemResolver};
use crate::{Host, Refused, Rules};

/// LIMIT: connections of an app to the world at a time.
pub const CONNECTIONS_MAX: usize = 512;
/// LIMIT: how long a connection may take, the name included.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// LIMIT: how long one of several addresses may take before the next is tried.
const ADDRESS_WITHIN: Duration = Duration::from_secs(5);

/// Lets an app out to where its rules say. Clones share their limits.
#[derive(Clone)]
pub struct Guard {
    rules: Arc<Rules>,
    resolver: Arc<dyn Resolve>,
    places: Arc<Semaphore>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("rules", &self.rules)
            .field("places", &self.places.available_permits())
            .finish_non_exhaustive()
    }
}

impl Guard {
    /// A guard that keeps `rules`, and asks the system for names.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self::with_resolver(rules, Arc::new(SystemResolver::default()))
    }

    /// The same, asking `resolver`.
    #[must_use]
    pub fn with_resolver(rules: Rules, resolver: Arc<dyn Resolve>) -> Self {
        Self {
            rules: Arc::new(rules),
            resolver,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }

    /// What it keeps.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether a name may be asked for at all: by the rules, and by what a literal address is.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, host: &Host, port: u16) -> Result<(), Refused> {
        if let Host::Address(address) = host {
            open(host, port, *address)?;
        }
        if self.rules.allow(host, port) {
            return Ok(());
        }
        let host = host.clone();
        Err(Refused::NotAllowed { host, port })
    }

    /// Connects to one of the addresses that `host` has now, and that apps may reach.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn connect(&self, host: &Host, port: u16) -> Result<Connection, Refused> {
        self.check(host, port)?;
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| Refused::Busy(CONNECTIONS_MAX))?;
        let connected = timeout(CONNECT_WITHIN, self.reach(host, port)).await;
        let stream = connected.map_err(|_| Refused::Late {
            host: host.clone(),
            port,
            within: CONNECT_WITHIN,
        })??;
        let prepared = prepare(&stream).map_err(|source| Refused::Unreachable {
            host: host.clone(),
            port,
            source,
        });
        prepared.map(|()| Connection {
            stream,
            _place: place,
        })
    }

    async fn reach(&self, host: &Host, port: u16) -> Result<TcpStream, Refused> {
        let addresses = match host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                let found = self.resolver.resolve(name).await;
                found.map_err(|source| Refused::Unknown {
                    host: host.clone(),
                    source,
                })?
            }
        };
        let mut refused = Refused::NoAddress(host.clone());
        for address in addresses {
            // INVARIANT: what is checked is what is connected to. The name is not asked for again.
            let address = address.to_canonical();
            if let Err(closed) = open(host, port, address) {
                // Of a name with both, the app's people are told what could be tried.
                if matches!(refused, Refused::NoAddress(_)) {
                    refused = closed;
                }
                continue;
            }
            let connecting = TcpStream::connect(SocketAddr::new(address, port));
            let source = match timeout(ADDRESS_WITHIN, connecting).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => source,
                Err(_) => io::ErrorKind::TimedOut.into(),
            };
            refused = Refused::Unreachable {
                host: host.clone(),
                port,
                source,
            };
        }
        Err(refused)
    }
}

fn open(host: &Host, port: u16, address: IpAddr) -> Result<(), Refused> {
    match closed(address) {
        None => Ok(()),
        Some(what) => Err(Refused::Closed {
            host: host.clone(),
            port,
            address,
            what,
        }),
    }
}

/// The end of a message does not wait, and an end that has vanished is noticed one day.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    Ok(rustix::net::sockopt::set_socket_keepalive(stream, true)?)
}

/// A connection that the rules allow; it counts as one of the app's until it is dropped.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Whom it goes to.
    ///
    /// # Errors
    /// If there is no connection any more.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// Returns when the other end has sent something, or has ended: when it is ready to be read is not enough, since
    /// that may be a mistake.
    pub(crate) async fn speaks(&self) {
        // An error is its end as well.
        let _ = self.stream.peek(&mut [0]).await;
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;

    use tabbify_api::BoxFuture;

    use super::*;

    /// Answers a name with these lists, one after the other.
    #[derive(Debug, Default)]
    struct Book(Mutex<HashMap<String, Vec<Vec<IpAddr>>>>);

    impl Book {
        fn guard(entries: &[&str], name: &str, answers: &[&[&str]]) -> Guard {
            let list = |answer: &&[&str]| answer.iter().map(|text| text.parse().unwrap()).collect();
            let answers = answers.iter().rev().map(list).collect();
            let book = Self(Mutex::new([(name.to_owned(), answers)].into()));
            Guard::with_resolver(Rules::parse(entries).unwrap(), Arc::new(book))
        }
    }

    impl Resolve for Book {
        fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
            let answer = self.0.lock().unwrap().get_mut(name).and_then(Vec::pop);
            Box::pin(async { answer.ok_or_else(|| io::Error::other("asked too often")) })
        }
    }

    async fn refused(guard: &Guard, host: &str) -> Refused {
        guard.connect(&host.parse().unwrap(), 80).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_refused() {
        for inside in [
            "127.0.0.1",
            "169.254.169.254",
            "10.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "fd5a:1f00:1:1::1",
            "64:ff9b::7f00:1",
        ] {
            for entry in ["any", "evil.example", "*.example"] {
                let guard = Book::guard(&[entry], "evil.example", &[&[inside]]);
                let why = refused(&guard, "evil.example").await;
                assert!(matches!(why, Refused::Closed { .. }), "{inside}: {why}");
                assert!(
                    why.is_forbidden()
                        && why.line().starts_with("tabbify: blocked evil.example:80: "),
                    "{}",
                    why.line()
                );
            }
        }
    }

    #[tokio::test]
    async fn names_that_are_not_allowed_are_not_even_asked_for() {
        let guard = Book::guard(&["good.example:80"], "good.example", &[]);
        let why = refused(&guard, "x.good.example").await;
        assert_eq!(
            why.line(),
            "tabbify: blocked x.good.example:80. Add it to [network] egress."
        );
        assert!(matches!(
            refused(&guard, "good.example").await,
            Refused::Unknown { .. }
        ));
    }

    #[tokio::test]
    async fn literal_addresses_are_checked_too() {
        let guard = Guard::new(Rules::parse(&["any", "127.0.0.1:80", "[::1]:80"]).unwrap());
        for inside in [
            "127.0.0.1",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "169.254.169.254",
            "[fd00:ec2::254]",
            "0.0.0.0",
        ] {
            assert!(
                matches!(refused(&guard, inside).await, Refused::Closed { .. }),
                "{inside}"
            );
        }
    }

    #[tokio::test]
    async fn as_many_as_it_may() {
        let guard = Guard::new(Rules::parse(&["any"]).unwrap());
        let all = u32::try_from(CONNECTIONS_MAX).unwrap();
        let taken = Arc::clone(&guard.places)
            .try_acquire_many_owned(all)
            .unwrap();
        assert!(matches!(
            refused(&guard, "example.com").await,
            Refused::Busy(_)
        ));
        drop(taken);
    }
}
