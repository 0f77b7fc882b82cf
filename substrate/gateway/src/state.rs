//! What the log says: which secrets there are, in which version and under which record, and which
//! instances may have which.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tabbify_api::fold::{Fold, pairs};
use tabbify_api::log::{Filter, LogScope};
use tabbify_api::secrets::SecretView;
use tabbify_types::event::EventError;
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{
    Event, EventId, MeshKey, Recorded, Rev, SecretName, SecretVersion, Segment, SegmentGlob,
    Tenant, Timestamp,
};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    tenants: BTreeMap<Tenant, BTreeMap<SecretName, Entry>>,
    /// Instances that were placed, have not ended, and use secrets.
    #[serde(with = "pairs")]
    instances: BTreeMap<InstanceRef, Uses>,
    #[serde(with = "pairs")]
    holders: BTreeMap<MeshKey, InstanceRef>,
}

/// A name that was ever a secret. One that was removed is remembered: its versions go on from there, so
/// that no two values are ever of one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The last revision of its key in the log.
    pub(crate) rev: Rev,
    /// The newest version.
    pub(crate) version: SecretVersion,
    /// Its value, until it is removed.
    pub(crate) held: Option<Held>,
}

/// The record of the newest value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// The event that names it, and so its files.
    pub(crate) id: EventId,
    pub(crate) created: Timestamp,
    pub(crate) changed: Timestamp,
}

/// What an instance may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uses {
    pub(crate) tenant: Tenant,
    pub(crate) names: BTreeSet<SecretName>,
    key: Option<MeshKey>,
}

impl State {
    /// What the vault reads of the log; it writes in the names of those who ask.
    pub(crate) fn scope() -> LogScope {
        LogScope {
            actor: "service:api-gateway".to_owned(),
            write: Vec::new(),
            read: Self::default().filter().segments,
        }
    }

    /// What is known of a name.
    pub(crate) fn entry(&self, tenant: &Tenant, name: &SecretName) -> Option<&Entry> {
        self.tenants.get(tenant)?.get(name)
    }

    /// How many secrets a tenant has.
    pub(crate) fn count(&self, tenant: &Tenant) -> usize {
        let entries = self.tenants.get(tenant).into_iter().flatten();
        entries.filter(|(_, entry)| entry.held.is_some()).count()
    }

    /// A tenant's secrets, by name.
    pub(crate) fn views(&self, tenant: &Tenant) -> Vec<SecretView> {
        let entries = self.tenants.get(tenant).into_iter().flatten();
        entries
            .filter_map(|(name, entry)| view(name, entry))
            .collect()
    }

    /// One of them.
    pub(crate) fn view(&self, tenant: &Tenant, name: &SecretName) -> Option<SecretView> {
        view(name, self.entry(tenant, name)?)
    }

    /// The instance whose lease has this key, and what it may have.
    pub(crate) fn holder(&self, key: &MeshKey) -> Option<(InstanceRef, &Uses)> {
        let of = self.holders.get(key)?;
        Some((*of, self.instances.get(of)?))
    }

    /// The records that there must be.
    pub(crate) fn records(&self) -> impl Iterator<Item = EventId> + '_ {
        let entries = self.tenants.values().flat_map(BTreeMap::values);
        entries.filter_map(|entry| Some(entry.held?.id))
    }

    fn set(&mut self, recorded: &Recorded, name: SecretName, version: SecretVersion) {
        let Some(tenant) = tenant_of(recorded, &name) else {
            return;
        };
        let entries = self.tenants.entry(tenant).or_default();
        let before = entries.get(&name).and_then(|entry| entry.held);
        let held = Held {
            id: recorded.id,
            created: before.map_or(recorded.at, |before| before.created),
            changed: recorded.at,
        };
        let entry = Entry {
            rev: recorded.rev,
            version,
            held: Some(held),
        };
        entries.insert(name, entry);
    }

    fn removed(&mut self, recorded: &Recorded, name: &SecretName) {
        let Some(tenant) = tenant_of(recorded, name) else {
            return;
        };
        let entry = self.tenants.get_mut(&tenant);
        if let Some(entry) = entry.and_then(|entries| entries.get_mut(name)) {
            entry.rev = recorded.rev;
            entry.held = None;
        }
    }

    /// Others than those that use secrets are not known here, and nothing is to be known of them.
    fn granted(&mut self, of: InstanceRef, key: MeshKey) {
        let Some(uses) = self.instances.get_mut(&of) else {
            return;
        };
        if let Some(before) = uses.key.replace(key) {
            self.holders.remove(&before);
        }
        // A key is one instance's for its life; a log that says otherwise is believed in its last word.
        let other = self.holders.insert(key, of).filter(|other| *other != of);
        if let Some(other) = other.and_then(|other| self.instances.get_mut(&other)) {
            other.key = None;
        }
    }

    fn ended(&mut self, of: InstanceRef) {
        let uses = self.instances.remove(&of);
        if let Some(key) = uses.and_then(|uses| uses.key) {
            self.holders.remove(&key);
        }
    }
}

fn view(name: &SecretName, entry: &Entry) -> Option<SecretView> {
    let held = entry.held?;
    Some(SecretView {
        name: name.clone(),
        version: entry.version,
        created: held.created,
        changed: held.changed,
        apps: Vec::new(),
    })
}

/// Whose secret an event is about, if it stands where those events stand.
fn tenant_of(recorded: &Recorded, name: &SecretName) -> Option<Tenant> {
    let tenant = recorded.segment.tenant()?;
    let own = recorded.segment == Segment::secrets(&tenant) && recorded.key == name.as_str();
    own.then_some(tenant)
}

impl Fold for State {
    const NAME: &'static str = "vault";
    const VERSION: u32 = 1;
    type News = ();
    type Error = EventError;

    fn filter(&self) -> Filter {
        let kinds = [
            "secret_registered",
            "secret_rotated",
            "secret_removed",
            "app_placed",
            "app_failed",
            "app_stopped",
            "lease_granted",
            "lease_released",
        ];
        Filter {
            segments: vec![
                SegmentGlob::all_secrets(),
                SegmentGlob::all_apps(),
                SegmentGlob::from(&Segment::peers()),
            ],
            kinds: kinds.map(str::to_owned).to_vec(),
            key: None,
        }
    }

    fn apply(&mut self, recorded: &Recorded) -> Result<(), EventError> {
        let Some(event) = recorded.event()? else {
            return Ok(());
        };
        let in_peers = recorded.segment == Segment::peers();
        match event {
            Event::SecretRegistered(data) => self.set(recorded, data.name, data.version),
            Event::SecretRotated(data) => self.set(recorded, data.name, data.version),
            Event::SecretRemoved(data) => self.removed(recorded, &data.name),
            Event::AppPlaced(data) if recorded.segment == Segment::apps(&data.tenant) => {
                let names = data.run.secrets.into_values().map(|used| used.name);
                let names: BTreeSet<SecretName> = names.collect();
                if !names.is_empty() {
                    let (app, instance) = (data.app, data.instance);
                    self.ended(InstanceRef { app, instance });
                    let uses = Uses {
                        tenant: data.tenant,
                        names,
                        key: None,
                    };
                    self.instances.insert(InstanceRef { app, instance }, uses);
                }
            }
            Event::LeaseGranted(data) if in_peers => {
                let (app, instance) = (data.app, data.instance);
                self.granted(InstanceRef { app, instance }, data.key);
            }
            Event::LeaseReleased(data) if in_peers => {
                let (app, instance) = (data.app, data.instance);
                self.ended(InstanceRef { app, instance });
            }
            Event::AppFailed(data) if !in_peers => self.ended(data.of),
            Event::AppStopped(data) if !in_peers => self.ended(data.of),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
