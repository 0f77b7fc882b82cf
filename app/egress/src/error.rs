//! Why an app does not get where it wants to, in words for its people.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use crate::{Host, HostError};

/// Why a connection is not made. Each is a line of the app's log, and what its program is answered.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// No rule names it.
    #[error("blocked {host}:{port}. Add it to [network] egress")]
    NotAllowed {
        /// Whom the app wants.
        host: Host,
        /// At which port.
        port: u16,
    },
    /// It is at an address that no app reaches.
    #[error("blocked {host}:{port}: {address} is {what}, which no app reaches")]
    Closed {
        /// Whom the app wants.
        host: Host,
        /// At which port.
        port: u16,
        /// Where that is.
        address: IpAddr,
        /// What kind of address that is.
        what: &'static str,
    },
    /// What is asked for inside of a connection is not whom the connection is for.
    #[error(
        "blocked {inside:?}, asked for inside of a connection to {host}:{port}. Add it to [network] egress"
    )]
    Inside {
        /// Whom the connection is for.
        host: Host,
        /// At which port.
        port: u16,
        /// Who is asked for in it.
        inside: String,
    },
    /// The beginning of a connection cannot be understood, so that it may ask for anybody.
    #[error("blocked {host}:{port}: its first bytes do not say whom they are for: {why}")]
    Unclear {
        /// Whom the connection is for.
        host: Host,
        /// At which port.
        port: u16,
        /// What is wrong.
        why: &'static str,
    },
    /// There is no such host.
    #[error("blocked a connection: {0}")]
    NotAHost(#[from] HostError),
    /// Nobody is there to be asked for the name, or knows it.
    #[error("{host} is not found: {source}")]
    Unknown {
        /// Who is not found.
        host: Host,
        /// What the system said.
        source: io::Error,
    },
    /// It has no address.
    #[error("{0} has no address")]
    NoAddress(Host),
    /// Nobody answers there.
    #[error("{host}:{port} does not answer: {source}")]
    Unreachable {
        /// Who does not.
        host: Host,
        /// At which port.
        port: u16,
        /// What the system said of the last of its addresses.
        source: io::Error,
    },
    /// It takes too long.
    #[error("{host}:{port} was not reached within {within:?}")]
    Late {
        /// Who was not.
        host: Host,
        /// At which port.
        port: u16,
        /// How long that was tried.
        within: Duration,
    },
    /// It has as many as it may.
    #[error("more than {0} connections at a time")]
    Busy(usize),
    /// Another app, and what stands in the way.
    #[error("{name}:{port} was not reached: {why}")]
    Neighbor {
        /// Its name.
        name: String,
        /// At which port.
        port: u16,
        /// Why not.
        why: String,
    },
}

impl Refused {
    /// The line of the app's log.
    #[must_use]
    pub fn line(&self) -> String {
        format!("tabbify: {self}.")
    }

    /// Whether the platform forbids it, rather than that it cannot be done now.
    #[must_use]
    pub const fn is_forbidden(&self) -> bool {
        match self {
            Self::NotAllowed { .. }
            | Self::Closed { .. }
            | Self::Inside { .. }
            | Self::Unclear { .. }
            | Self::NotAHost(_) => true,
            Self::Unknown { .. }
            | Self::NoAddress(_)
            | Self::Unreachable { .. }
            | Self::Late { .. }
            | Self::Busy(_)
            | Self::Neighbor { .. } => false,
        }
    }
}

/// Why rules cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// An entry is none.
    #[error(
        "{entry:?} is no entry of [network] egress: {source}. Write a host and a port, such as \"api.stripe.com:443\""
    )]
    Entry {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        source: HostError,
    },
    /// There are more than anybody needs.
    #[error("[network] egress has {0} entries, more than an app may have")]
    TooMany(usize),
}
