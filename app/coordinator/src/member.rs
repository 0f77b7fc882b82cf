//! What a member may ask, once its key is proven: each answer follows from who the key is by the log.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tabbify_api::auth::issue::{API_AUDIENCE, Admission};
use tabbify_api::coordinator::{
    Ask, Change, EndorsedKey, Heard, HostCertificate, HostKey, Joined, PolicyOrder,
    REPORT_KEYS_MAX, Report, Resolved, ResolvedLease, SignedLease, Spawn, SpawnTicket,
};
use tabbify_api::doorbell::{DoorAsk, DoorSaid};
use tabbify_api::policy::{
    self, COORDINATOR_TAG, NODE_TAG, Party, Ports, RELAY_TAG, ROLE_TAG, Who,
};
use tabbify_process::chain;
use tabbify_token::{DocumentType, Kind, PublicKey, TokenError, Verifier};
use tabbify_types::event::v1::{Capability, LeaseGranted, PeerJoined};
use tabbify_types::{ByteSize, HostName, MeshKey, Position, Tenant, VerifyingKeyBytes};

use crate::Config;
use crate::coordinator::Coordinator;
use crate::grant::exchange;
use crate::join::{allowed, change_policy, join, leave, tags_for, tenant_of};
use crate::leases::{Holder, door, door_lease, holder, host_lease, lease};
use crate::refusal::Refusal;
use crate::soft::REPORT_LIFE;
use crate::state::State;
use crate::stats::count;
use crate::watch::{Topic, Watch};

/// How long a machine's certificate lasts; it asks for the next at half of it.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Tags of machines that hear of every app and machine: public edges and relays.
const EDGE_TAGS: [&str; 2] = [NODE_TAG, RELAY_TAG];
/// LIMIT: machines with roles of the platform that a joining one is told.
const SYSTEM_HOSTS_MAX: usize = 64;

impl Coordinator {
    /// Makes the machine that a join token admits a member.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) async fn admit(
        &self,
        admission: Admission,
        seen: Seen,
        signing: VerifyingKeyBytes,
    ) -> Result<(HostCertificate, Joined), Refusal> {
        let config = Config {
            tags: tags_for(&admission.tenant, &admission.tags),
            capabilities: allowed(seen.capabilities, &admission.capabilities),
            memory: seen.memory,
            host: admission.host,
            key: admission.key,
        };
        self.check_free(&config)?;
        self.settle(|state| join(state, &config)).await?;
        // It has just spoken: its silence counts from here.
        self.0.soft.joined(&config.host);
        self.certify(&config.key, signing)
    }

    /// Refuses, while its token can still be used, a machine that could not join with it. Whether the token
    /// counts is auth's to say; one that does not even look so tells nothing about the machines that are
    /// there.
    ///
    /// # Errors
    /// [`Refusal::Conflict`]; [`Refusal::Unavailable`] if nobody can join now.
    pub(crate) async fn foresee(&self, token: &str, key: MeshKey) -> Result<(), Refusal> {
        self.catch_up().await?;
        let verified = self
            .verifier()?
            .verify(token, &[Kind::Join], API_AUDIENCE, self.now());
        let Ok(claims) = verified else {
            return Ok(());
        };
        let host = claims.sub.strip_prefix("host:");
        let Some(host) = host.and_then(|host| host.parse().ok()) else {
            return Ok(());
        };
        let config = Config {
            tags: tags_for(&claims.tenant, &claims.tags),
            capabilities: Vec::new(),
            memory: None,
            host,
            key,
        };
        self.check_free(&config)?;
        self.read(|state| join(state, &config).map(drop))??;
        Ok(())
    }

    fn check_free(&self, config: &Config) -> Result<(), Refusal> {
        if self.lives_with_another_key(config)? {
            let text = format!("{} is a machine that lives, with another key", config.host);
            return Err(Refusal::Conflict(text));
        }
        Ok(())
    }

    /// Whether the name is that of another machine which is heard of, or that decides here: nobody takes
    /// its place while it lives.
    fn lives_with_another_key(&self, config: &Config) -> Result<bool, Refusal> {
        let decides = self.read(|state| {
            let known = state.hosts.get(&config.host)?;
            let decides = known.tags.iter().any(|tag| tag == COORDINATOR_TAG);
            (known.key != config.key).then_some(decides)
        })?;
        let heard = || self.0.soft.heard_at(&config.host);
        Ok(decides.is_some_and(|decides| {
            decides || heard().is_some_and(|at| at.elapsed() < self.lost_after())
        }))
    }

    /// A member machine's certificate, from now on, and with it, signed, what else it needs but a token.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn certify(
        &self,
        key: &MeshKey,
        signing: VerifyingKeyBytes,
    ) -> Result<(HostCertificate, Joined), Refusal> {
        let found = self.read(|state| {
            let system = state.hosts.values().filter(|peer| has_role(peer));
            let system: Vec<PeerJoined> = system.take(SYSTEM_HOSTS_MAX).cloned().collect();
            match holder(state, Ask::Key(*key)) {
                Some(Holder::Host(peer)) => Some((peer.clone(), system, state.issuers.clone())),
                _ => None,
            }
        })?;
        let (peer, system, issuers) = found.ok_or(Refusal::NotAMember)?;
        let certificate = HostCertificate {
            tenant: tenant_of(&peer.tags),
            host: peer.host,
            tags: peer.tags,
            address: peer.address,
            key: peer.key,
            signing,
            not_after: self.now().plus(CERTIFICATE_LIFE),
        };
        let signed = self.sign(DocumentType::HostCertificate, &certificate)?;
        let system = system.into_iter().map(|peer| {
            let candidates = self.candidates(Holder::Host(&peer)).unwrap_or_default();
            let lease = host_lease(peer, candidates, self.now());
            self.sign(DocumentType::HostLease, &lease)
        });
        let system = system.collect::<Result<_, _>>()?;
        let joined = Joined {
            certificate: signed,
            issuers,
            system,
            token: None,
            helpers: self.helpers(),
            now: self.now(),
        };
        Ok((certificate, joined))
    }

    /// Checks that a signing key speaks for the WireGuard key that was proven.
    ///
    /// # Errors
    /// [`Refusal::Invalid`].
    pub(crate) fn check_consent(
        &self,
        key: &MeshKey,
        signing: VerifyingKeyBytes,
        consent: &str,
    ) -> Result<(), Refusal> {
        let said: HostKey = self
            .open(signing, DocumentType::HostKey, consent)
            .map_err(|error| Refusal::Invalid(format!("the signing key's consent: {error}")))?;
        if said.key == *key {
            Ok(())
        } else {
            let text = "the signing key consents to another WireGuard key";
            Err(Refusal::Invalid(text.to_owned()))
        }
    }

    /// Gives an instance its lease for what it was spawned with.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) async fn spawned(
        &self,
        key: &MeshKey,
        spawn: &Spawn,
    ) -> Result<SignedLease, Refusal> {
        let forbidden = |what: &str, error: &TokenError| {
            Refusal::Forbidden(format!("the {what} is refused: {error}"))
        };
        let certificate: HostCertificate = self
            .verifier()?
            .verify_document(DocumentType::HostCertificate, &spawn.certificate)
            .map_err(|error| forbidden("certificate", &error))?;
        let ticket: SpawnTicket = self
            .open(
                certificate.signing,
                DocumentType::SpawnTicket,
                &spawn.ticket,
            )
            .map_err(|error| forbidden("spawn ticket", &error))?;
        let judged = |state: &State| exchange(state, &certificate, &ticket, key, self.now());
        if self.read(|state| judged(state).is_err())? {
            // The machine has read in the log that the instance was placed; so must we, before we refuse.
            self.catch_up().await?;
        }
        self.settle(judged).await?;
        self.renewed(key)
    }

    /// The lease that an instance's key has, from now on.
    ///
    /// # Errors
    /// [`Refusal::Fenced`] once a newer instance has taken over.
    pub(crate) fn renewed(&self, key: &MeshKey) -> Result<SignedLease, Refusal> {
        let found = self.read(|state| match holder(state, Ask::Key(*key)) {
            Some(Holder::Instance(granted)) => {
                let app = state.apps.get(&granted.app);
                if app.is_some_and(|app| app.is_fenced(granted)) {
                    return Err(Refusal::Fenced);
                }
                Ok(granted.clone())
            }
            _ => Err(Refusal::NotAMember),
        })?;
        let granted = found?;
        let candidates = self.candidates(Holder::Instance(&granted));
        let lease = lease(granted, candidates.unwrap_or_default(), self.now());
        let lease = self.sign(DocumentType::Lease, &lease)?;
        let now = Some(self.now());
        Ok(SignedLease { lease, now })
    }

    /// Who is asked for, if policy lets the two talk. The asker is told when the answer changes.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn resolve_for(&self, asker: &MeshKey, ask: Ask) -> Result<Resolved, Refusal> {
        let counters = &self.0.counters;
        let Talk {
            target,
            ports,
            reverse,
            rules_of,
        } = self.talk(asker, ask)?;
        let lease = match target {
            Target::Instance(granted) => {
                let candidates = self.candidates(Holder::Instance(&granted));
                // Whoever calls us needs not be found; whom we call does.
                let candidates = match (candidates, ask) {
                    (Some(candidates), _) => candidates,
                    (None, Ask::Key(_)) => Vec::new(),
                    (None, Ask::Address(_)) => {
                        count(&counters.unresolved);
                        return Err(self.unheard(ask));
                    }
                };
                let lease = lease(granted, candidates, self.now());
                ResolvedLease::App(self.sign(DocumentType::Lease, &lease)?)
            }
            Target::Door(granted, machine) => {
                let candidates = self.candidates(Holder::Host(&machine));
                let candidates = candidates.unwrap_or_default();
                let lease = door_lease(granted, &machine, candidates, self.now());
                ResolvedLease::App(self.sign(DocumentType::Lease, &lease)?)
            }
            Target::Host(peer) => {
                let candidates = self.candidates(Holder::Host(&peer)).unwrap_or_default();
                let lease = host_lease(peer, candidates, self.now());
                ResolvedLease::Host(self.sign(DocumentType::HostLease, &lease)?)
            }
        };
        count(&counters.resolved);
        Ok(Resolved {
            lease,
            ports,
            reverse: Some(reverse),
            rules_of,
            now: self.now(),
        })
    }

    /// Who is asked for, and what the two may reach of each other. The asker is told when that changes.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn talk(&self, asker: &MeshKey, ask: Ask) -> Result<Talk, Refusal> {
        let counters = &self.0.counters;
        // Who may not know what is asked for is not told about it either; who may is told of whatever
        // changes after this.
        let topic = self.read(|state| talk(state, asker, ask).map(|talk| talk.target.topic()))?;
        if let Ok(topic) = topic {
            self.0.watchers.asked(asker, topic);
        }
        let talk = self.read(|state| talk(state, asker, ask))?;
        talk.map_err(|why| match why {
            NoTalk::Stranger => Refusal::NotAMember,
            NoTalk::Nobody => {
                count(&counters.unresolved);
                Refusal::NoLease(ask)
            }
            NoTalk::Denied => {
                count(&counters.denied);
                Refusal::Denied(ask)
            }
        })
    }

    /// What a machine asks about an instance that was placed on it: whether its doorbell stands for it, and
    /// what a guest may reach of it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn at_door(&self, key: &MeshKey, ask: DoorAsk) -> Result<DoorSaid, Refusal> {
        self.read(|state| {
            let Some(Holder::Host(machine)) = holder(state, Ask::Key(*key)) else {
                return Err(Refusal::NotAMember);
            };
            let app = state.apps.get(&ask.of.app);
            let instance = app.and_then(|app| app.instances.get(&ask.of.instance));
            let placed = instance.filter(|instance| instance.host == machine.host);
            let (Some(app), Some(instance)) = (app, placed) else {
                let text = "the instance was not placed on this machine";
                return Err(Refusal::Forbidden(text.to_owned()));
            };
            let to = Party {
                who: Who::App(ask.of.app),
                tenant: app.tenant.clone(),
                tags: Vec::new(),
            };
            let guest = ask.guest.and_then(|guest| holder(state, Ask::Key(guest)));
            let ports = guest.and_then(|guest| state.policy.ports(&guest.party(), &to));
            Ok(DoorSaid {
                is_idle: instance.idle,
                ports: ports.unwrap_or(Ports::NOTHING),
            })
        })?
    }

    /// Begins a watch of a member's.
    ///
    /// # Errors
    /// [`Refusal::NotAMember`].
    pub(crate) fn watch(&self, key: &MeshKey, after: Option<Position>) -> Result<Watch, Refusal> {
        self.begin_watch(key, |everything| {
            self.0.watchers.open(*key, everything, after)
        })
    }

    /// Begins a watch of a part of this process, which speaks for a member.
    ///
    /// # Errors
    /// [`Refusal::NotAMember`].
    pub(crate) fn watch_own(&self, key: &MeshKey) -> Result<Watch, Refusal> {
        self.begin_watch(key, |everything| self.0.watchers.open_own(*key, everything))
    }

    /// Whoever is somebody no more, or hears more or less than before, is told so by its watch from here on.
    /// So the key is looked up again once the watch is there: what changed in between was told to nobody.
    fn begin_watch(&self, key: &MeshKey, open: impl Fn(bool) -> Watch) -> Result<Watch, Refusal> {
        let mut everything = self.hears_everything(key)?;
        loop {
            let watch = open(everything);
            let now = self.hears_everything(key)?;
            if now == everything {
                return Ok(watch);
            }
            everything = now;
        }
    }

    fn hears_everything(&self, key: &MeshKey) -> Result<bool, Refusal> {
        let everything = self.read(|state| match holder(state, Ask::Key(*key)) {
            Some(Holder::Host(peer)) => {
                Some(peer.tags.iter().any(|tag| EDGE_TAGS.contains(&&**tag)))
            }
            Some(Holder::Instance(_)) => Some(false),
            None => None,
        })?;
        everything.ok_or(Refusal::NotAMember)
    }

    /// Takes a sign of life, and where the member's keys may be reached.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn report(&self, key: &MeshKey, report: &Report) -> Result<Heard, Refusal> {
        if report.keys.len() > REPORT_KEYS_MAX {
            let text = format!("a report of more than {REPORT_KEYS_MAX} keys");
            return Err(Refusal::Invalid(text));
        }
        let host = self.read(|state| match holder(state, Ask::Key(*key)) {
            Some(Holder::Host(peer)) => Ok(peer.host.clone()),
            Some(Holder::Instance(granted)) if report.keys.iter().all(|told| told.key == *key) => {
                Ok(granted.host.clone())
            }
            Some(Holder::Instance(_)) => {
                let text = "an instance reports where it is itself";
                Err(Refusal::Forbidden(text.to_owned()))
            }
            None => Err(Refusal::NotAMember),
        })??;
        let now = self.now();
        let taken = self.0.soft.report(&host, report.keys.clone(), now);
        for key in &taken.moved {
            if self.tell_moved(key, Some(&host)) {
                self.0.soft.told(&host, key);
            }
        }
        if !taken.fits {
            return Err(Refusal::RateLimited);
        }
        let again_within = REPORT_LIFE.min(self.lost_after());
        let again_within_ms = u64::try_from(again_within.as_millis()).unwrap_or(u64::MAX);
        Ok(Heard {
            now,
            again_within_ms,
        })
    }

    /// Tells whoever has asked for a key that it is to be reached elsewhere, and so is asked for again; whether
    /// that is done. What a key's machine may say of it is limited, for each report may move it: what goes
    /// beyond is told with one of the next.
    pub(crate) fn tell_moved(&self, key: &MeshKey, by: Option<&HostName>) -> bool {
        let change = self.read(|state| {
            let holder = holder(state, Ask::Key(*key))?;
            // Where another machine's key is, is not this one's to say.
            if by.is_some_and(|by| by != holder.host()) {
                return None;
            }
            Some(match holder {
                Holder::Instance(granted) => Change::App {
                    app: granted.app,
                    gone: None,
                },
                Holder::Host(peer) => Change::Host {
                    host: peer.host.clone(),
                    address: peer.address,
                    gone: None,
                },
            })
        });
        let Ok(Some(change)) = change else {
            return false;
        };
        if by.is_some() && !self.0.moves.take(key) {
            return false;
        }
        self.0.watchers.publish_soft(change);
        true
    }

    /// Why nobody is found at an address that somebody holds: of those who were there before this process it
    /// has not heard yet.
    pub(crate) fn unheard(&self, ask: Ask) -> Refusal {
        if self.now() < self.0.began.plus(REPORT_LIFE) {
            let text = format!("it has just started, and not heard yet where {ask} is");
            return Refusal::Unavailable(text);
        }
        Refusal::NoLease(ask)
    }

    /// Takes a machine out of the mesh, as it asks itself.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) async fn left(&self, key: &MeshKey) -> Result<(), Refusal> {
        let host = self.find(|| {
            let host = self.read(|state| state.host_keys.get(key).cloned())?;
            host.ok_or(Refusal::NotAMember)
        });
        self.remove_machine(&host.await?).await
    }

    /// Takes a machine out of the mesh: from here on its key is nobody's, nor are those of the instances that
    /// were placed there, and its apps run elsewhere. Whether the caller may is the caller's to check.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn remove_machine(&self, host: &HostName) -> Result<(), Refusal> {
        self.settle(|state| leave(state, host)).await?;
        self.0.soft.forget(host);
        Ok(())
    }

    /// Makes these the tenant's rules, and no others. Whether the caller may is the caller's to check.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn change_policy(&self, order: PolicyOrder) -> Result<(), Refusal> {
        policy::check(&order.allow).map_err(|error| Refusal::Invalid(error.to_string()))?;
        self.settle(|state| change_policy(state, &order.tenant, &order.allow))
            .await
    }

    /// The issuer keys with the root key's word for each, oldest first.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`].
    pub fn issuers(&self) -> Result<Vec<EndorsedKey>, Refusal> {
        self.read(|state| state.issuers.clone())
    }

    /// Whether the key is anybody's.
    pub(crate) fn is_member(&self, key: &MeshKey) -> bool {
        let known = self.read(|state| holder(state, Ask::Key(*key)).is_some());
        known.unwrap_or_default()
    }

    /// Verifies what this platform's issuer signs now.
    fn verifier(&self) -> Result<Verifier, Refusal> {
        let signer = self.signer();
        let mut verifier = Verifier::new(signer.platform().clone());
        let known = self.issuers()?;
        let known = known.iter().rev().take(2).map(|key| key.public);
        for public in known.chain([signer.public()]) {
            if let Ok(key) = PublicKey::try_from(public) {
                verifier = verifier.with_key(key);
            }
        }
        Ok(verifier)
    }

    /// What `key`, and no other, has signed.
    fn open<T: DeserializeOwned>(
        &self,
        key: VerifyingKeyBytes,
        typ: DocumentType,
        text: &str,
    ) -> Result<T, TokenError> {
        let key = PublicKey::try_from(key).map_err(|_| TokenError::UnknownKey)?;
        let verifier = Verifier::new(self.signer().platform().clone()).with_key(key);
        verifier.verify_document(typ, text)
    }

    fn sign(&self, typ: DocumentType, document: &impl Serialize) -> Result<String, Refusal> {
        let signed = self.signer().sign_document(typ, document);
        signed.map_err(|error| Refusal::Unavailable(chain(&error).to_string()))
    }
}

/// What a machine says of itself as it joins.
pub(crate) struct Seen {
    /// What it has seen work.
    pub(crate) capabilities: Vec<Capability>,
    /// Its memory for apps.
    pub(crate) memory: Option<ByteSize>,
}

/// Two that may talk.
pub(crate) struct Talk {
    /// Who was asked for.
    pub(crate) target: Target,
    /// What may be reached of whoever was asked for at an address; of the asker, by a key.
    pub(crate) ports: Ports,
    /// The other way round.
    pub(crate) reverse: Ports,
    /// The tenants whose rules say so.
    pub(crate) rules_of: Vec<Tenant>,
}

/// Who was asked for, as it leaves the state.
pub(crate) enum Target {
    Instance(LeaseGranted),
    /// An instance that is idle, and its machine, whose doorbell wakes it.
    Door(LeaseGranted, PeerJoined),
    Host(PeerJoined),
}

impl Target {
    fn of(state: &State, holder: Holder<'_>, ask: Ask) -> Self {
        match holder {
            Holder::Instance(granted) => match (door(state, granted), ask) {
                (Some(machine), Ask::Address(_)) => Self::Door(granted.clone(), machine.clone()),
                (_, _) => Self::Instance(granted.clone()),
            },
            Holder::Host(peer) => Self::Host(peer.clone()),
        }
    }

    fn topic(&self) -> Topic {
        match self {
            Self::Instance(granted) | Self::Door(granted, _) => Topic::App(granted.app),
            Self::Host(peer) => Topic::Host(peer.host.clone()),
        }
    }
}

/// Why two do not talk.
enum NoTalk {
    /// The asker is nobody.
    Stranger,
    /// Nobody is asked for.
    Nobody,
    /// Policy forbids it.
    Denied,
}

/// Who is asked for, and what the two may reach of each other.
fn talk(state: &State, asker: &MeshKey, ask: Ask) -> Result<Talk, NoTalk> {
    let asking = holder(state, Ask::Key(*asker)).ok_or(NoTalk::Stranger)?;
    let target = holder(state, ask).ok_or(NoTalk::Nobody)?;
    let found = Target::of(state, target, ask);
    let (asking, asked) = (asking.party(), target.party());
    let reach = |from: &Party, to: &Party| {
        let ports = state.policy.ports(from, to);
        ports.unwrap_or(Ports::NOTHING)
    };
    let (outbound, inbound) = (reach(&asking, &asked), reach(&asked, &asking));
    let (ports, reverse, is_denied) = match ask {
        Ask::Address(_) => {
            let is_denied = !state.policy.may_find(&asking, &asked);
            (outbound, inbound, is_denied)
        }
        // Whoever was called keeps its session going, and says so in handshakes of its own.
        Ask::Key(_) => {
            let is_relay = asking.tags.iter().any(|tag| tag == RELAY_TAG);
            let is_denied = inbound.is_nothing() && outbound.is_nothing() && !is_relay;
            (inbound, outbound, is_denied)
        }
    };
    if is_denied {
        return Err(NoTalk::Denied);
    }
    let mut rules_of = vec![asked.tenant];
    if !rules_of.contains(&asking.tenant) {
        rules_of.push(asking.tenant);
    }
    Ok(Talk {
        target: found,
        ports,
        reverse,
        rules_of,
    })
}

fn has_role(peer: &PeerJoined) -> bool {
    peer.tags.iter().any(|tag| tag.starts_with(ROLE_TAG))
}
