//! Makes a machine a member of the mesh and a place for apps, or ends that. Pure; says nothing if it is
//! so already.
//!
//! Every batch that gives a number to a machine, or another key, writes `network_allocated` again under
//! the network's key with the revision that it has seen: of two coordinators that decide at the same
//! time, the log takes one, and the other looks again. So no number and no key is given twice.

use tabbify_api::log::{Append, Expect};
use tabbify_types::event::v1::{
    AllowRule, Capability, NetworkAllocated, PeerJoined, PeerLeft, PolicyChanged,
    SupervisorDrainRequested,
};
use tabbify_types::event::{Event, EventError};
use tabbify_types::{HostName, HostUla, MeshKey, NewEvent, Segment, Tenant};

use crate::Config;
use crate::state::{Machine, State};

/// The first network.
const NETWORK: &str = "main";
/// Its number.
const NETWORK_NUMBER: u16 = 1;

/// Begins the tag that says whose apps a machine may run. The coordinator writes it from the join
/// token's tenant; a token's own tags cannot begin so.
const TENANT_TAG: &str = "tenant:";

/// Why a machine cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Every number of the network is taken.
    #[error("network {NETWORK} has no number left for another machine")]
    Full,
    /// Another machine or an instance has the same WireGuard key.
    #[error("{0} has the same WireGuard key: every machine needs its own")]
    KeyTaken(String),
    /// Another tenant's machine has the name.
    #[error("{0} is a machine of another tenant")]
    NameTaken(HostName),
    /// Others kept writing about the same machine.
    #[error("another process keeps joining under the same name")]
    Contended,
    /// An event cannot be written.
    #[error("the machine cannot be described in an event")]
    Event(#[source] EventError),
}

/// The tags of a machine that may run apps of `tenant`, from those that its token claims.
#[must_use]
pub(crate) fn tags_for(tenant: &Tenant, claimed: &[String]) -> Vec<String> {
    let own = claimed.iter().filter(|tag| !tag.starts_with(TENANT_TAG));
    let mut tags: Vec<String> = own.cloned().collect();
    if *tenant != Tenant::system() {
        tags.push(format!("{TENANT_TAG}{tenant}"));
    }
    tags
}

/// The tenant whose apps a machine with these tags may run; `system` for all.
#[must_use]
pub(crate) fn tenant_of(tags: &[String]) -> Tenant {
    let mut named = tags.iter().filter_map(|tag| tag.strip_prefix(TENANT_TAG));
    let tenant = named.find_map(|slug| slug.parse().ok());
    tenant.unwrap_or_else(Tenant::system)
}

/// Of what a machine has seen work on itself, what its token allows it to be used for.
#[must_use]
pub(crate) fn allowed(seen: Vec<Capability>, admitted: &[String]) -> Vec<Capability> {
    let mut seen = seen;
    seen.retain(|capability| admitted.contains(&capability.runtime));
    seen
}

/// What is missing in the log for the machine to be a member; `None` if nothing is. Written only if
/// nobody joins at the same time.
///
/// # Errors
/// [`JoinError`].
pub fn join(state: &State, config: &Config) -> Result<Option<Append>, JoinError> {
    let peers = Segment::peers();
    let name = config.host.as_str();
    let known = state.networks.get(NETWORK).copied();
    let number = known.unwrap_or(NETWORK_NUMBER);
    let mut batch = Draft::new(state);
    let joined = peer(state, config, number)?;
    if state.hosts.get(&config.host) != Some(&joined) {
        let network = NetworkAllocated {
            network: NETWORK.to_owned(),
            number,
        };
        batch.put(&peers, NETWORK, &network.into())?;
        batch.put(&peers, name, &joined.into())?;
    }
    let known = state.supervisors.get(&config.host);
    let none = known.is_none() && config.capabilities.is_empty();
    let is_lost = state.is_lost(&config.host);
    let machine = Machine {
        capabilities: config.capabilities.clone(),
        memory: config.memory,
    };
    if (known != Some(&machine) || is_lost) && !none {
        batch.put_supervisor(&config.host, &machine)?;
    }
    Ok(batch.finish())
}

/// What is missing in the log for the machine to be no member; `None` if it is none.
///
/// # Errors
/// [`JoinError::Event`].
pub fn leave(state: &State, host: &HostName) -> Result<Option<Append>, JoinError> {
    let mut batch = Draft::new(state);
    if state.hosts.contains_key(host) {
        let left = PeerLeft { host: host.clone() };
        batch.put(&Segment::peers(), host.as_str(), &left.into())?;
    }
    Ok(batch.finish())
}

/// The rules of a tenant as somebody wants them; `None` if they are so already.
///
/// # Errors
/// [`JoinError::Event`].
pub(crate) fn change_policy(
    state: &State,
    tenant: &Tenant,
    allow: &[AllowRule],
) -> Result<Option<Append>, JoinError> {
    let mut batch = Draft::new(state);
    if state.policy.rules(tenant) != allow {
        let (tenant, allow) = (tenant.clone(), allow.to_vec());
        let key = tenant.to_string();
        let changed = PolicyChanged { tenant, allow };
        batch.put(&Segment::peers(), &key, &changed.into())?;
    }
    Ok(batch.finish())
}

/// A batch in which every event expects the revision that the state has seen.
pub(crate) struct Draft<'a> {
    state: &'a State,
    batch: Append,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(state: &'a State) -> Self {
        Self {
            state,
            batch: Append::default(),
        }
    }

    /// A machine can run apps. One that is to be empty still is: joining again does not change that.
    pub(crate) fn put_supervisor(
        &mut self,
        host: &HostName,
        machine: &Machine,
    ) -> Result<(), JoinError> {
        let segment = Segment::supervisors();
        let joined = machine.joined(host);
        self.put(&segment, host.as_str(), &joined.into())?;
        if let Some(drain) = self.state.drain_of(host) {
            let (host, by) = (host.clone(), drain.by.clone());
            let name = host.to_string();
            let again = SupervisorDrainRequested { host, by };
            self.put(&segment, &name, &again.into())?;
        }
        Ok(())
    }

    pub(crate) fn put(
        &mut self,
        segment: &Segment,
        key: &str,
        event: &Event,
    ) -> Result<(), JoinError> {
        let new = NewEvent::new(segment.clone(), key, event).map_err(JoinError::Event)?;
        self.batch.events.push(new);
        // A machine may be called like its network: what is expected is said once for both.
        let mut expected = self.batch.expect.iter();
        if expected.any(|it| it.segment == *segment && it.key == key) {
            return Ok(());
        }
        let known = self.state.revs.get(&(segment.clone(), key.to_owned()));
        let expect = known.map_or(Expect::None, |rev| Expect::Rev(*rev));
        let batch = std::mem::take(&mut self.batch);
        self.batch = batch.expecting(segment.clone(), key, expect);
        Ok(())
    }

    pub(crate) fn finish(self) -> Option<Append> {
        (!self.batch.events.is_empty()).then_some(self.batch)
    }
}

/// The machine as it is to stand in the log: its number is kept, or the next that nobody ever had.
fn peer(state: &State, config: &Config, network_number: u16) -> Result<PeerJoined, JoinError> {
    if let Some(other) = other_with(state, &config.key, &config.host) {
        return Err(JoinError::KeyTaken(other));
    }
    let index = match state.hosts.get(&config.host) {
        // Whoever lets machines of one tenant join has no say about those of others.
        Some(known) if known.key != config.key && !may_replace(known, &config.tags) => {
            return Err(JoinError::NameTaken(config.host.clone()));
        }
        Some(known) => known.index,
        None => {
            let last = state.last_index.get(NETWORK).copied().unwrap_or(0);
            last.checked_add(1).ok_or(JoinError::Full)?
        }
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

/// Whether a machine with these tags may have the name and the number of that one.
fn may_replace(known: &PeerJoined, tags: &[String]) -> bool {
    let tenant = tenant_of(tags);
    tenant == Tenant::system() || tenant == tenant_of(&known.tags)
}

fn other_with(state: &State, key: &MeshKey, host: &HostName) -> Option<String> {
    if let Some(other) = state.host_keys.get(key).filter(|other| *other != host) {
        return Some(format!("machine {other}"));
    }
    let instance = state.keys.get(key)?;
    Some(format!(
        "instance {} of {}",
        instance.instance, instance.app
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_cannot_claim_a_tenant_by_tag() {
        let other: Tenant = "other".parse().unwrap();
        let claimed = ["gpu".to_owned(), "tenant:main".to_owned()];
        let tags = tags_for(&other, &claimed);
        assert_eq!(tags, ["gpu", "tenant:other"]);
        assert_eq!(tenant_of(&tags), other);
        let tags = tags_for(&Tenant::system(), &claimed);
        assert_eq!(tags, ["gpu"]);
        assert_eq!(tenant_of(&tags), Tenant::system());
    }

    #[test]
    fn a_machine_is_used_for_what_its_token_allows() {
        let seen = |runtime: &str| Capability {
            runtime: runtime.to_owned(),
            works: true,
            detail: String::new(),
        };
        let counted = allowed(
            vec![seen("docker"), seen("wasm-http")],
            &["docker".to_owned()],
        );
        assert_eq!(counted, [seen("docker")]);
    }
}
