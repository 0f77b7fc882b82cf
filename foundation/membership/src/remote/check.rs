//! What is believed of an answer: what an issuer key signed that the root key has endorsed, for what was
//! asked, at a time that makes sense.

use std::net::{Ipv6Addr, SocketAddr};

use tabbify_api::coordinator::{Ask, EndorsedKey, HostLease, Resolved, ResolvedLease};
use tabbify_api::mesh::{Lease, PeerRecord, ResolveError};
use tabbify_api::policy::NODE_TAG;
use tabbify_token::{
    DocumentType, LEEWAY, PlatformId, PublicKey, TokenError, Verifier, verify_endorsement,
};
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{
    AppId, AppUla, Epoch, InstanceUla, MeshKey, SlotId, Timestamp, VerifyingKeyBytes,
};
use tokio::time::Instant;

use super::cache::{Known, Topic};
use super::{JoinFailed, RemoteCoordinator, count};
use crate::life::LEASE_LIFE;

/// Issuer keys that count at one time.
const ISSUERS_MAX: usize = 2;

/// The root key, and what it endorses.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    key: PublicKey,
    platform: PlatformId,
}

impl Root {
    pub(crate) fn new(root: VerifyingKeyBytes) -> Result<Self, JoinFailed> {
        Ok(Self {
            key: PublicKey::try_from(root).map_err(|_| JoinFailed::Root)?,
            platform: PlatformId::of(&root),
        })
    }

    pub(crate) const fn platform(&self) -> &PlatformId {
        &self.platform
    }

    pub(crate) fn key_bytes(&self) -> VerifyingKeyBytes {
        self.key.bytes()
    }

    /// Verifies with the newest of `keys`, oldest first, that the root key has endorsed.
    pub(crate) fn verifier(&self, keys: &[EndorsedKey]) -> Verifier {
        let endorsed = keys.iter().rev().filter_map(|key| {
            verify_endorsement(&self.key, &key.public, &key.signature).ok()?;
            PublicKey::try_from(key.public).ok()
        });
        let verifier = Verifier::new(self.platform.clone());
        endorsed
            .take(ISSUERS_MAX)
            .fold(verifier, Verifier::with_key)
    }
}

/// What a lease of either sort says.
struct Said {
    key: MeshKey,
    addresses: Vec<Ipv6Addr>,
    not_after: Timestamp,
    /// The app, slot and epoch of an instance.
    fence: Option<(AppId, SlotId, Epoch)>,
    known: Known,
}

impl RemoteCoordinator {
    /// The answer, if it is one to what was asked.
    pub(crate) async fn check(&self, ask: Ask, answer: &Resolved) -> Result<Known, ResolveError> {
        let counters = &self.0.counters;
        let now = self.0.clock.now();
        if let Some(why) = clocks_differ(now, answer.now) {
            count(&counters.clock);
            return Err(ResolveError::Refused(why));
        }
        let forged = |why: String| {
            count(&counters.forged);
            ResolveError::Refused(why)
        };
        let said = self.said(ask, answer).await;
        let said = said.map_err(|error| forged(error.to_string()))?;
        let is_asked_for = match ask {
            Ask::Address(address) => said.addresses.contains(&address),
            Ask::Key(key) => said.key == key,
        };
        if !is_asked_for {
            return Err(forged(format!("it is for another than {ask}")));
        }
        let longest = now.plus(LEASE_LIFE).plus(LEEWAY);
        if said.not_after <= now || said.not_after > longest {
            count(&counters.clock);
            let why = format!("it ends at {}, and it is {now}", said.not_after);
            return Err(ResolveError::Refused(why));
        }
        // An app's address must not go back to an older instance than one that was seen to have it.
        if let Some((app, slot, epoch)) = said.fence
            && ask == Ask::Address(AppUla::derive(app).addr())
            && !self.cache().admits(app, slot, epoch)
        {
            count(&counters.fenced);
            let why = format!("epoch {epoch} of its slot is over");
            return Err(ResolveError::Refused(why));
        }
        Ok(said.known)
    }

    async fn said(&self, ask: Ask, answer: &Resolved) -> Result<Said, TokenError> {
        match &answer.lease {
            ResolvedLease::App(text) => {
                let lease: Lease = self.open(DocumentType::Lease, text).await?;
                Ok(of_app(ask, lease, text, answer))
            }
            ResolvedLease::Host(text) => {
                let lease: HostLease = self.open(DocumentType::HostLease, text).await?;
                Ok(of_host(ask, lease, answer))
            }
        }
    }
}

/// The peer, with the ports of both directions as the answer tells them; it speaks for nobody.
fn record(
    ask: Ask,
    key: MeshKey,
    addresses: Vec<Ipv6Addr>,
    endpoints: Vec<SocketAddr>,
    answer: &Resolved,
) -> PeerRecord {
    let (asked, reverse) = (Some(answer.ports.clone()), answer.reverse.clone());
    let (outbound, inbound) = match ask {
        Ask::Address(_) => (asked, reverse),
        Ask::Key(_) => (reverse, asked),
    };
    PeerRecord {
        key,
        addresses,
        endpoints,
        outbound,
        inbound,
        is_node: false,
        rules_of: answer.rules_of.clone(),
        door: None,
    }
}

fn of_app(ask: Ask, lease: Lease, text: &str, answer: &Resolved) -> Said {
    let app = AppUla::derive(lease.app).addr();
    let instance = InstanceUla::derive(lease.app, lease.instance).addr();
    let addresses = vec![app, instance];
    let mut record = record(ask, lease.key, addresses.clone(), lease.candidates, answer);
    if let Some(door) = lease.door {
        // The peer is the machine: of what it may reach, nothing was asked.
        (record.addresses, record.inbound) = (vec![door.addr()], None);
        let (app, instance) = (lease.app, lease.instance);
        record.door = Some(InstanceRef { app, instance });
    }
    Said {
        key: lease.key,
        addresses,
        not_after: lease.not_after,
        fence: Some((lease.app, lease.slot, lease.epoch)),
        known: Known {
            record,
            ports: answer.ports.clone(),
            lease: Some(text.to_owned()),
            topic: Topic::App(lease.app),
            tenant: lease.tenant,
            not_after: lease.not_after,
            doubtful: false,
            asked: Instant::now(),
        },
    }
}

fn of_host(ask: Ask, lease: HostLease, answer: &Resolved) -> Said {
    let addresses = vec![lease.address.addr()];
    let mut record = record(ask, lease.key, addresses.clone(), lease.candidates, answer);
    record.is_node = lease.tags.iter().any(|tag| tag == NODE_TAG);
    Said {
        key: lease.key,
        addresses,
        not_after: lease.not_after,
        fence: None,
        known: Known {
            record,
            ports: answer.ports.clone(),
            lease: None,
            topic: Topic::Host(lease.host),
            tenant: lease.tenant,
            not_after: lease.not_after,
            doubtful: false,
            asked: Instant::now(),
        },
    }
}

/// Why nothing that depends on the time can be believed, if so.
pub(crate) fn clocks_differ(ours: Timestamp, theirs: Timestamp) -> Option<String> {
    let apart = ours.millis().abs_diff(theirs.millis());
    let limit = u64::try_from(LEEWAY.as_millis()).unwrap_or(u64::MAX);
    (apart > limit).then(|| {
        let (seconds, limit) = (apart / 1000, LEEWAY.as_secs());
        format!(
            "the clock here is {seconds} s apart from the coordinator's, at most {limit}: \
             it is {ours} here and {theirs} there; set this machine's clock"
        )
    })
}
