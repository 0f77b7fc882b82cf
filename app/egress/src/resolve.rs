//! From a name to its addresses, by the system's own resolver: what the operator of the machine has configured
//! (servers, a stub with DNS over TLS, the hosts file) counts for apps as for everything else. Nothing is kept:
//! each connection asks again, and the system keeps what may be kept.

use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::BoxFuture;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// LIMIT: addresses of a name that are looked at.
pub const ADDRESSES_MAX: usize = 16;
/// LIMIT: names that are asked for at a time; each has a thread.
const LOOKUPS_MAX: usize = 32;
/// LIMIT: how long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Finds the addresses of a name.
///
/// Law: an answer has at most [`ADDRESSES_MAX`] addresses, comes within bounded time, and is checked by nobody:
/// whoever asks does that.
pub trait Resolve: Send + Sync + fmt::Debug {
    /// The addresses of an absolute name.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// The system's. Clones share their limits.
#[derive(Debug, Clone)]
pub struct SystemResolver {
    places: Arc<Semaphore>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(LOOKUPS_MAX)),
        }
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let late = |_| io::Error::from(io::ErrorKind::TimedOut);
            let asking = async {
                let place = Arc::clone(&self.places).acquire_owned().await;
                // The dot keeps the system from trying the machine's own domains behind the name.
                let absolute = format!("{name}.");
                let looking = tokio::task::spawn_blocking(move || {
                    // Until the system has answered, even if nobody waits any more: so threads are bounded.
                    let _place = place;
                    let found = (absolute.as_str(), 0_u16).to_socket_addrs()?;
                    let mut addresses: Vec<IpAddr> = Vec::new();
                    for address in found.map(|found| found.ip()) {
                        if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
                            addresses.push(address);
                        }
                    }
                    Ok(addresses)
                });
                looking.await.map_err(io::Error::other)?
            };
            timeout(ANSWER_WITHIN, asking).await.map_err(late)?
        })
    }
}
