//! Which way to a peer: the paths that may lead to it, proof that one does, and the choice.
//!
//! Plane: app. The [`Agent`] of each session is sans-IO: datagrams and the time come in as arguments,
//! probes to be sent come out. What it knows of our own side (addresses, relays) is in
//! [`Surroundings`], which [`Discovery`] keeps up to date, sans-IO too.
//!
//! ```text
//! Path: direct · spare socket · relayed          best first: direct, then the shortest round trip
//!   │ probe: ping ─▶  ◀─ pong   sealed for the two keys   only a pong to our ping, on the path that
//!   │ call: here is where I may be  (over a relay)        the ping took, confirms a path
//! ```
//! `docs/protocols/path.md` says what is on the wire, ADR 17 why.

use std::net::SocketAddr;

use smoltcp::time::Instant;
use tabbify_types::MeshKey;

mod agent;
mod birthday;
pub(crate) mod discovery;
mod known;
mod probe;
pub(crate) mod surroundings;

#[cfg(test)]
mod simulation;

pub(crate) use agent::{Agent, Proof};
pub(crate) use discovery::Discovery;
pub(crate) use probe::{HINT_LEN, Hint, PROBE, Seal, hint};
pub(crate) use surroundings::Surroundings;

/// Where the key of a peer leads a relay: its first bytes. To find a second key with the same ones
/// takes 2^64 attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub [u8; TAG_LEN]);

/// Bytes of a [`Tag`].
pub const TAG_LEN: usize = 8;

impl Tag {
    /// That of a key.
    #[must_use]
    pub fn of(key: MeshKey) -> Self {
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&key.0[..TAG_LEN]);
        Self(tag)
    }
}

/// A way for datagrams to a peer and from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// From our socket to an address.
    Direct(SocketAddr),
    /// From one of the sockets that were opened to get through a hard NAT, to an address.
    Spare(u32, SocketAddr),
    /// Through the relay with this number, to who has this tag there.
    Relayed(u16, Tag),
}

impl Path {
    /// Whether a relay is on the way.
    #[must_use]
    pub const fn is_relayed(self) -> bool {
        matches!(self, Self::Relayed(..))
    }

    /// The address at the other end, if there is no relay on the way.
    #[must_use]
    pub const fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Direct(to) | Self::Spare(_, to) => Some(to),
            Self::Relayed(..) => None,
        }
    }

    /// An address that stands for the sender where the engine limits handshakes by address: on a
    /// relayed path one of the discard prefix (RFC 6666) made from the tag.
    pub(crate) fn stand_in(self) -> SocketAddr {
        match self {
            Self::Direct(address) | Self::Spare(_, address) => address,
            Self::Relayed(relay, Tag(tag)) => {
                let mut octets = [0; 16];
                octets[0] = 1;
                octets[8..].copy_from_slice(&tag);
                SocketAddr::from((octets, relay))
            }
        }
    }
}

impl From<SocketAddr> for Path {
    fn from(address: SocketAddr) -> Self {
        Self::Direct(address)
    }
}

/// An address that may lead to its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// The address.
    pub address: SocketAddr,
    /// How it is known.
    pub kind: CandidateKind,
}

/// How its owner knows an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CandidateKind {
    /// An interface of the machine has it.
    Local,
    /// A STUN server sees it.
    Reflexive,
    /// The NAT was asked for it.
    Mapped,
}

/// What an agent wants done.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    /// To be sent, in this order.
    pub(crate) probes: Vec<(Path, Vec<u8>)>,
    /// Spare sockets of this peer that are not needed any more: all but these.
    pub(crate) release: Option<Vec<u32>>,
}

/// The earlier of two times, if there is any.
fn earliest(times: impl IntoIterator<Item = Option<Instant>>) -> Option<Instant> {
    times.into_iter().flatten().min()
}
