//! The way to the coordinator: its socket on the platform's own machine, or where an operator said that it
//! listens. A name is looked up again for each connection; while nobody can look names up, it counts where
//! the coordinator was before.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tabbify_api::BoxFuture;
use tabbify_api::runner::Place;
use tabbify_process::Tasks;
use tabbify_process::connect::{Connect, Stream, UnixSocket};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Where a coordinator listens unless it is told otherwise.
pub(crate) const COORDINATOR_PORT: u16 = 8888;
/// LIMIT: how long a name may take to be looked up, and how long where it was before is not used instead.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(10);
const USE_KNOWN_AFTER: Duration = Duration::from_secs(3);
/// The pause before a name is looked up a second time that must be known; doubles with each.
const PAUSE: Duration = Duration::from_millis(500);
/// LIMIT: the longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// LIMIT: addresses of one name that are remembered.
const KNOWN_MAX: usize = 16;

/// A way to the coordinator.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// Its socket, in the data directory of the platform.
    Local(UnixSocket),
    /// Where it listens.
    Remote(Named),
}

impl Way {
    /// Where that is now. Of a name that nobody knows, and that was never known here, it is asked until
    /// somebody does or the tasks end.
    pub(crate) async fn find(&self, tasks: &Tasks) -> anyhow::Result<Vec<Place>> {
        match self {
            Self::Local(_) => Ok(self.places()),
            Self::Remote(named) => {
                let stop = tasks.token();
                let found = stop.run_until_cancelled(named.until_known()).await;
                found.context("it was stopped before it knew where the coordinator is")?;
                Ok(self.places())
            }
        }
    }

    /// Where that was when it was looked up last.
    pub(crate) fn places(&self) -> Vec<Place> {
        match self {
            Self::Local(socket) => vec![Place::Unix(socket.directory.join(&socket.name))],
            Self::Remote(named) => named.known().into_iter().map(Place::Tcp).collect(),
        }
    }
}

impl Connect for Way {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            match self {
                Self::Local(socket) => socket.connect().await,
                Self::Remote(named) => {
                    let places = named.look_up().await.map_err(io::Error::other)?;
                    let stream = TcpStream::connect(places.as_slice()).await?;
                    // Small requests must not wait for each other's acknowledgment.
                    stream.set_nodelay(true)?;
                    Ok(Box::new(stream) as Box<dyn Stream>)
                }
            }
        })
    }
}

/// A `host:port`, and where it led when it was looked up last. Clones share that.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    text: String,
    known: Arc<RwLock<Vec<SocketAddr>>>,
}

impl Named {
    /// What an operator wrote: a name or an address, with a port or without.
    pub(crate) fn read(written: &str) -> anyhow::Result<Self> {
        Ok(Self::known_at(host_and_port(written)?, Vec::new()))
    }

    /// A `host:port` that led to these addresses before.
    pub(crate) fn known_at(text: String, known: Vec<SocketAddr>) -> Self {
        let known = Arc::new(RwLock::new(known));
        Self { text, known }
    }

    /// As `host:port`.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Where it led when it was looked up last; nothing if it never was.
    pub(crate) fn known(&self) -> Vec<SocketAddr> {
        let known = self.known.read();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where it leads: now, or if nobody can tell, before. At least one address.
    pub(crate) async fn look_up(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let known = self.known();
        let within = match known.is_empty() {
            true => LOOK_UP_WITHIN,
            false => USE_KNOWN_AFTER,
        };
        let looked_up = timeout(within, tokio::net::lookup_host(&self.text)).await;
        let why = match looked_up {
            Ok(Ok(found)) => {
                let found: Vec<SocketAddr> = found.take(KNOWN_MAX).collect();
                if !found.is_empty() {
                    let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                    known.clone_from(&found);
                    return Ok(found);
                }
                "it has no address".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("nobody answered within {} s", within.as_secs()),
        };
        if known.is_empty() {
            let text = &self.text;
            bail!(
                "{text} cannot be looked up: {why}. Check the name, and that this machine can look names \
                 up; an address works without"
            );
        }
        tracing::debug!(name = self.text, why, "used where it was before");
        Ok(known)
    }

    /// Returns once it is known where it leads.
    async fn until_known(&self) {
        let mut pause = PAUSE;
        while let Err(error) = self.look_up().await {
            if pause == PAUSE {
                tracing::warn!(error = format!("{error:#}"), "trying again");
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// What an operator wrote for a coordinator, as `host:port`.
fn host_and_port(written: &str) -> anyhow::Result<String> {
    let text = written.trim();
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        bail!("write it without {scheme}://, for it is no web page: tabbify join {host}");
    }
    let wrong = || {
        format!(
            "{text:?} is no place of a coordinator: write apps.example.com, apps.example.com:{COORDINATOR_PORT}, \
             192.0.2.1:{COORDINATOR_PORT} or [2001:db8::1]:{COORDINATOR_PORT}"
        )
    };
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(text).parse::<Ipv6Addr>() {
        return Ok(SocketAddr::new(IpAddr::V6(address), COORDINATOR_PORT).to_string());
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0)
            .then(|| text.to_owned())
            .with_context(wrong);
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)),
        None => (text, Some(COORDINATOR_PORT)),
    };
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = !host.is_empty() && host.chars().all(is_name);
    let port: u16 = port.filter(|_| good).with_context(wrong)?;
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, proptest};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_coordinator_is_written_with_a_port_or_without() {
        for (written, expected) in [
            ("apps.example.com", "apps.example.com:8888"),
            (" apps.example.com:443\n", "apps.example.com:443"),
            ("192.0.2.1", "192.0.2.1:8888"),
            ("192.0.2.1:9", "192.0.2.1:9"),
            ("2001:db8::1", "[2001:db8::1]:8888"),
            ("[2001:db8::1]", "[2001:db8::1]:8888"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
            ("localhost", "localhost:8888"),
        ] {
            assert_eq!(host_and_port(written).unwrap(), expected, "{written}");
        }
        for (written, said) in [
            (
                "https://apps.example.com/join",
                "tabbify join apps.example.com",
            ),
            ("http://192.0.2.1:8888", "tabbify join 192.0.2.1:8888"),
            ("", "is no place"),
            (":8888", "is no place"),
            ("host:", "is no place"),
            ("host:0", "is no place"),
            ("host:99999", "is no place"),
            ("192.0.2.1:0", "is no place"),
            ("a b", "is no place"),
            ("host/path", "is no place"),
        ] {
            let refused = host_and_port(written).unwrap_err().to_string();
            assert!(refused.contains(said), "{written:?}: {refused}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_taken_has_a_host_and_a_port(text in any::<String>()) {
            if let Ok(taken) = host_and_port(&text) {
                let (host, port) = taken.rsplit_once(':').unwrap();
                proptest::prop_assert!(!host.is_empty() && port.parse::<u16>().unwrap() != 0);
            }
        }
    }

    #[tokio::test]
    async fn where_it_was_counts_while_nobody_can_look_it_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        // RFC 6761: the name of nobody.
        let nobody = format!("coordinator.invalid:{}", at.port());
        let never = Named::read(&nobody).unwrap();
        let refused = never.look_up().await.unwrap_err().to_string();
        assert!(refused.contains("cannot be looked up"), "{refused}");

        let before = Named::known_at(nobody, vec![at]);
        assert_eq!(before.look_up().await.unwrap(), [at]);
        let way = Way::Remote(before);
        assert_eq!(way.find(&Tasks::new()).await.unwrap(), [Place::Tcp(at)]);
        way.connect().await.unwrap();
        listener.accept().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_looked_up_is_known_from_then_on() {
        let named = Named::read("localhost:7").unwrap();
        assert!(named.known().is_empty());
        let found = named.look_up().await.unwrap();
        assert!(
            found
                .iter()
                .all(|at| at.ip().is_loopback() && at.port() == 7)
        );
        assert_eq!(named.known(), found);
        assert_eq!(named.clone().known(), found, "clones know it too");
        // Nobody waits for a name when the process is told to end.
        let stopped = Tasks::new();
        stopped.stop();
        let way = Way::Remote(Named::read("coordinator.invalid").unwrap());
        assert!(way.find(&stopped).await.is_err());
    }
}
