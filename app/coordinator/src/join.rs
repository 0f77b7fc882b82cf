//! Makes a machine a member of the mesh and a place for apps. Pure; says nothing if it is already.

use tabbify_api::log::{Append, Expect};
use tabbify_types::event::v1::{NetworkAllocated, PeerJoined, SupervisorJoined};
use tabbify_types::event::{Event, EventError};
use tabbify_types::{HostUla, NewEvent, Segment};

use crate::Config;
use crate::state::State;

/// The first network.
const NETWORK: &str = "main";
/// Its number.
const NETWORK_NUMBER: u16 = 1;

/// Why a machine cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Every number of the network is taken.
    #[error("network {NETWORK} has no number left for another machine")]
    Full,
    /// Another machine has the same WireGuard key.
    #[error("machine {0} has the same WireGuard key: every machine needs its own")]
    KeyTaken(tabbify_types::HostName),
    /// Others kept writing about the same machine.
    #[error("another process keeps joining under the same name")]
    Contended,
    /// An event cannot be written.
    #[error("the machine cannot be described in an event")]
    Event(#[source] EventError),
}

/// What is missing in the log for the machine to be a member; `None` if nothing is. Written only if
/// nobody joins at the same time under the same name.
///
/// # Errors
/// [`JoinError`].
pub fn join(state: &State, config: &Config) -> Result<Option<Append>, JoinError> {
    let mut events = Vec::new();
    let mut put = |segment: &Segment, key: &str, event: &Event| {
        let event = NewEvent::new(segment.clone(), key, event).map_err(JoinError::Event)?;
        events.push(event);
        Ok(())
    };
    let (peers, supervisors) = (Segment::peers(), Segment::supervisors());
    let name = config.host.as_str();
    let number = state
        .networks
        .get(NETWORK)
        .copied()
        .unwrap_or(NETWORK_NUMBER);
    if !state.networks.contains_key(NETWORK) {
        let network = NetworkAllocated {
            network: NETWORK.to_owned(),
            number,
        };
        put(&peers, NETWORK, &network.into())?;
    }
    let joined = peer(state, config, number)?;
    if state.hosts.get(&config.host) != Some(&joined) {
        put(&peers, name, &joined.into())?;
    }
    if state.supervisors.get(&config.host) != Some(&config.capabilities) {
        let (host, capabilities) = (config.host.clone(), config.capabilities.clone());
        put(
            &supervisors,
            name,
            &SupervisorJoined { host, capabilities }.into(),
        )?;
    }
    if events.is_empty() {
        return Ok(None);
    }
    // One machine joins per process for now. When others join over the network, the coordinator
    // that answers them must also fence the number it gives, which no revision here does.
    let mut batch = Append::of(events);
    for (segment, key) in [(&peers, NETWORK), (&peers, name), (&supervisors, name)] {
        let known = state.revs.get(&(segment.clone(), key.to_owned()));
        let expect = known.map_or(Expect::None, |rev| Expect::Rev(*rev));
        let twice = batch
            .expect
            .iter()
            .any(|it| it.segment == *segment && it.key == key);
        if !twice {
            batch = batch.expecting(segment.clone(), key, expect);
        }
    }
    Ok(Some(batch))
}

/// The machine as it is to stand in the log: its number is kept, or the next that nobody ever had.
fn peer(state: &State, config: &Config, network_number: u16) -> Result<PeerJoined, JoinError> {
    let same_key = |peer: &&PeerJoined| peer.key == config.key && peer.host != config.host;
    if let Some(other) = state.hosts.values().find(same_key) {
        return Err(JoinError::KeyTaken(other.host.clone()));
    }
    let last = state
        .hosts
        .values()
        .map(|peer| peer.index)
        .max()
        .unwrap_or(0);
    let index = match state.hosts.get(&config.host) {
        Some(known) => known.index,
        None => last.checked_add(1).ok_or(JoinError::Full)?,
    };
    Ok(PeerJoined {
        host: config.host.clone(),
        network: NETWORK.to_owned(),
        index,
        address: HostUla::new(network_number, index),
        key: config.key,
        tags: config.tags.clone(),
    })
}
