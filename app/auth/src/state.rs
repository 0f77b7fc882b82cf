//! What auth knows: a pure fold of `platform` and `platform.auth`.

mod people;
mod shared;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tabbify_api::log::Filter;
use tabbify_process::fold::Fold;
use tabbify_token::{
    KeyError, PlatformId, PublicKey, Revocations, TokenError, Verifier, verify_endorsement,
};
use tabbify_types::event::v1::{IssuerKeyRotated, PlatformInitialized, UserRegistered};
use tabbify_types::event::{Event, EventError};
use tabbify_types::{Position, Recorded, Rev, Segment, SegmentGlob, SigningKeyId, Tenant};

use people::People;
pub use people::{Invite, Person};
pub use tokens::Issued;
use tokens::Tokens;

/// LIMIT: issuer keys that count at one time: the newest, and the one before it while its tokens
/// live.
pub const ISSUER_KEYS_MAX: usize = 2;

/// Somebody who can sign in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The subject of the user's tokens.
    pub subject: String,
    /// The tenant the user belongs to.
    pub tenant: Tenant,
    /// The key whose proofs sign the user in, if that is how.
    pub key: Option<PublicKey>,
}

/// The fold. Equal logs give equal states. It has no secret that the log does not have: passwords are
/// sealed, tokens are ids.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    root: Option<PublicKey>,
    /// Oldest first.
    issuers: Vec<PublicKey>,
    issuer_rev: Rev,
    tenants: BTreeSet<Tenant>,
    users: BTreeMap<String, User>,
    by_key: BTreeMap<SigningKeyId, String>,
    people: People,
    tokens: Tokens,
    /// Shared with every verifier that was made of it.
    #[serde(with = "shared")]
    revocations: Arc<Revocations>,
}

/// Why the log cannot be followed further. The state is as it was before the event.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// An event that auth must understand is not understood.
    #[error("it is not understood")]
    Event(#[source] EventError),
    /// A key in an event is not one that can be relied on.
    #[error("it brings a key that cannot be relied on")]
    Key(#[source] KeyError),
    /// An issuer key comes without the root key's word, or under another key's id.
    #[error("it brings an issuer key that the root key has not signed")]
    Endorsement(#[source] TokenError),
    /// The platform is initialized twice, or used before it is.
    #[error("it does not fit: position 1, and only it, initializes a platform")]
    Initialization,
}

impl Fold for State {
    const NAME: &'static str = "auth";
    const VERSION: u32 = 1;
    /// Whether something was taken back: a token, or all that somebody had.
    type News = Revoked;
    type Error = FoldError;

    fn filter(&self) -> Filter {
        Self::filter()
    }

    fn apply(&mut self, event: &Recorded) -> Result<Revoked, FoldError> {
        self.change(event)
    }
}

/// Whether an event took something back that had been given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// It did: what is open may have to end.
    Something,
    /// It did not.
    Nothing,
}

impl State {
    /// What the fold reads.
    #[must_use]
    pub fn filter() -> Filter {
        Filter::segments([&Segment::platform(), &Segment::auth()].map(SegmentGlob::from))
    }

    /// The platform's root key; `None` before position 1.
    #[must_use]
    pub const fn root(&self) -> Option<&PublicKey> {
        self.root.as_ref()
    }

    /// The issuer keys that count, oldest first.
    #[must_use]
    pub fn issuers(&self) -> &[PublicKey] {
        &self.issuers
    }

    /// Whether the tenant exists.
    #[must_use]
    pub fn has_tenant(&self, tenant: &Tenant) -> bool {
        self.tenants.contains(tenant)
    }

    /// Revision of the issuer keys, for the next rotation to expect.
    #[must_use]
    pub const fn issuer_rev(&self) -> Rev {
        self.issuer_rev
    }

    /// Who is registered under this subject.
    #[must_use]
    pub fn user(&self, subject: &str) -> Option<&User> {
        self.users.get(subject)
    }

    /// What else is known of a subject: roles, password, invitation.
    #[must_use]
    pub fn person(&self, subject: &str) -> Option<&Person> {
        self.people.get(subject)
    }

    /// Everybody of whom something is known, by subject.
    pub fn persons(&self) -> impl Iterator<Item = (&str, &Person)> {
        self.people.iter()
    }

    /// A token that people manage, by its id: `agent`, `join` or `host`, not long after its end.
    #[must_use]
    pub fn token(&self, jti: &str) -> Option<&Issued> {
        self.tokens.get(jti)
    }

    /// All of these tokens, by id.
    pub fn tokens(&self) -> impl Iterator<Item = (&str, &Issued)> {
        self.tokens.iter()
    }

    /// What was revoked.
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// The user whose proofs this key signs.
    #[must_use]
    pub fn user_by_key(&self, kid: &SigningKeyId) -> Option<&User> {
        self.users.get(self.by_key.get(kid)?)
    }

    /// Accepts what the keys that count have signed; `None` before position 1.
    #[must_use]
    pub fn verifier(&self) -> Option<Verifier> {
        let platform = PlatformId::of(&self.root.as_ref()?.bytes());
        let keys = self.issuers.iter().cloned();
        let verifier = keys.fold(Verifier::new(platform), Verifier::with_key);
        Some(verifier.with_revocations(Arc::clone(&self.revocations)))
    }

    /// Events of other segments and types are skipped: what a tenant writes into its own segment counts
    /// for nothing here, whatever type it gives it.
    fn change(&mut self, recorded: &Recorded) -> Result<Revoked, FoldError> {
        if ![Segment::platform(), Segment::auth()].contains(&recorded.segment) {
            return Ok(Revoked::Nothing);
        }
        match recorded.event().map_err(FoldError::Event)? {
            Some(Event::PlatformInitialized(data)) => self.initialize(recorded.position, &data)?,
            Some(Event::TenantCreated(data)) => {
                self.tenants.insert(data.tenant);
            }
            Some(Event::IssuerKeyRotated(data)) => {
                self.rotate(&data)?;
                self.issuer_rev = recorded.rev;
            }
            Some(Event::UserRegistered(data)) => {
                let user = data.user.clone();
                self.register(data)?;
                self.people.registered(&user, recorded.rev);
            }
            Some(event) => return Ok(self.note(event, recorded)),
            None => {}
        }
        Ok(Revoked::Nothing)
    }

    /// What cannot be wrong by itself.
    fn note(&mut self, event: Event, recorded: &Recorded) -> Revoked {
        let rev = recorded.rev;
        match event {
            Event::UserInvited(data) => self.people.invited(data, rev),
            Event::RoleChanged(data) => self.people.role(data, rev),
            Event::PasswordChanged(data) => self.people.password(data, rev),
            Event::SubjectErased(data) => self.people.erased(&data.subject, rev),
            Event::SessionsEnded(data) => {
                Arc::make_mut(&mut self.revocations).end_sessions(&data.subject, data.upto);
                self.people.touched(&data.subject, rev);
                return Revoked::Something;
            }
            Event::TokenIssued(data) => self.tokens.issued(data, recorded),
            Event::TokenUsed(data) => self.tokens.used(&data),
            Event::TokenRevoked(data) => {
                Arc::make_mut(&mut self.revocations).revoke(&data.jti);
                return Revoked::Something;
            }
            _ => {}
        }
        Revoked::Nothing
    }

    fn initialize(
        &mut self,
        position: Position,
        data: &PlatformInitialized,
    ) -> Result<(), FoldError> {
        if position != Position(1) || self.root.is_some() {
            return Err(FoldError::Initialization);
        }
        let root = PublicKey::try_from(data.root_key);
        self.root = Some(root.map_err(FoldError::Key)?);
        Ok(())
    }

    fn rotate(&mut self, data: &IssuerKeyRotated) -> Result<(), FoldError> {
        let root = self.root.as_ref().ok_or(FoldError::Initialization)?;
        verify_endorsement(root, &data.public, &data.signature).map_err(FoldError::Endorsement)?;
        if data.kid != data.public.id() {
            return Err(FoldError::Endorsement(TokenError::UnknownKey));
        }
        let key = PublicKey::try_from(data.public).map_err(FoldError::Key)?;
        self.issuers.retain(|known| *known != key);
        self.issuers.push(key);
        if self.issuers.len() > ISSUER_KEYS_MAX {
            self.issuers.remove(0);
        }
        Ok(())
    }

    fn register(&mut self, data: UserRegistered) -> Result<(), FoldError> {
        let key = data.key.map(PublicKey::try_from).transpose();
        let key = key.map_err(FoldError::Key)?;
        // Somebody's new key takes the place of the old one, and a key has one holder.
        self.by_key.retain(|_, user| *user != data.user);
        if let Some(key) = &key {
            self.by_key.insert(key.bytes().id(), data.user.clone());
        }
        let user = User {
            subject: data.user.clone(),
            tenant: data.tenant,
            key,
        };
        self.users.insert(data.user, user);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
