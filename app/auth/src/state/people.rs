//! What is known of people beside their keys: what they may do where, their passwords, invitations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tabbify_api::auth::people::Role;
use tabbify_types::event::v1::{PasswordChanged, RoleChanged, UserInvited};
use tabbify_types::{InviteId, Rev, Sealed, Tenant, Timestamp};

/// An invitation that nobody has accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// Its id.
    pub id: InviteId,
    /// Where to.
    pub tenant: Tenant,
    /// When it ends.
    pub expires: Timestamp,
}

/// What is known of one subject. All of it is under one key of the log, so that whoever decides by it
/// can expect its revision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// The revision of the subject's key.
    pub rev: Rev,
    /// The newest invitation, until it is accepted.
    pub invite: Option<Invite>,
    /// What the password is checked with.
    pub password: Option<Sealed>,
    /// How often the keys of the subject were destroyed; the next ones have the next version.
    pub erasures: u32,
    /// The newest word on each tenant; `None` is a role that was taken away, or that this release
    /// does not know.
    roles: BTreeMap<Tenant, Option<Role>>,
}

impl Person {
    /// What the person was made in a tenant; `None` if nobody has said anything about it.
    #[must_use]
    pub fn role(&self, tenant: &Tenant) -> Option<Option<Role>> {
        self.roles.get(tenant).copied()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct People(BTreeMap<String, Person>);

impl People {
    pub(super) fn get(&self, subject: &str) -> Option<&Person> {
        self.0.get(subject)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Person)> {
        self.0
            .iter()
            .map(|(subject, person)| (subject.as_str(), person))
    }

    fn at(&mut self, subject: &str, rev: Rev) -> &mut Person {
        let person = self.0.entry(subject.to_owned()).or_default();
        person.rev = rev;
        person
    }

    pub(super) fn touched(&mut self, subject: &str, rev: Rev) {
        // Hosts and instances have sessions too, and nothing else.
        if let Some(person) = self.0.get_mut(subject) {
            person.rev = rev;
        }
    }

    pub(super) fn registered(&mut self, subject: &str, rev: Rev) {
        self.at(subject, rev).invite = None;
    }

    pub(super) fn invited(&mut self, data: UserInvited, rev: Rev) {
        self.at(&data.user, rev).invite = Some(Invite {
            id: data.invite,
            tenant: data.tenant,
            expires: data.expires,
        });
    }

    pub(super) fn role(&mut self, data: RoleChanged, rev: Rev) {
        let role = data.role.and_then(|role| role.parse().ok());
        self.at(&data.user, rev).roles.insert(data.tenant, role);
    }

    pub(super) fn password(&mut self, data: PasswordChanged, rev: Rev) {
        self.at(&data.user, rev).password = Some(data.verifier);
    }

    pub(super) fn erased(&mut self, subject: &str, rev: Rev) {
        let person = self.at(subject, rev);
        person.erasures = person.erasures.saturating_add(1);
        person.password = None;
        person.invite = None;
    }
}
