//! What the coordinator knows this machine by, and the spawn tickets that it signs: whoever shows one first
//! gets the lease of an instance that was placed here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::coordinator::{Spawn, SpawnTicket};
use tabbify_api::runner::CoordinatorAt;
use tabbify_token::{DocumentType, PlatformId, SecretKey, Signer, TokenError};
use tabbify_types::Timestamp;
use tabbify_types::event::v1::InstanceRef;

/// How long a ticket counts: long enough for a runner to show it while coordinators change places. A
/// runner that comes later is given another.
const TICKET_LIFE: Duration = Duration::from_secs(120);

/// Gives the machine's certificate, as it was signed last; asked for each ticket, since certificates end.
pub type Certificate = Arc<dyn Fn() -> String + Send + Sync>;

/// Says where runners find the coordinator, as it was found last; asked for each runner, since places change.
pub type Whereabouts = Arc<dyn Fn() -> CoordinatorAt + Send + Sync>;

/// A member's identity, and where the coordinator is.
#[derive(Clone)]
pub struct Identity {
    certificate: Certificate,
    signer: Signer,
    coordinator: Whereabouts,
}

impl Identity {
    /// Of the machine whose certificate names the public half of `signing`; runners are told where the
    /// `coordinator` is, which must be where they reach it.
    #[must_use]
    pub fn new(certificate: Certificate, signing: SecretKey, coordinator: Whereabouts) -> Self {
        let platform = PlatformId::of(&coordinator().root);
        Self {
            certificate,
            signer: Signer::new(signing, platform),
            coordinator,
        }
    }

    pub(crate) fn coordinator(&self) -> CoordinatorAt {
        (self.coordinator)()
    }

    /// A ticket for an instance, and the certificate that makes it count.
    pub(crate) fn ticket(&self, of: InstanceRef, now: Timestamp) -> Result<Spawn, TokenError> {
        let ticket = SpawnTicket {
            app: of.app,
            instance: of.instance,
            not_after: now.plus(TICKET_LIFE),
        };
        let ticket = self
            .signer
            .sign_document(DocumentType::SpawnTicket, &ticket)?;
        Ok(Spawn {
            certificate: (self.certificate)(),
            ticket,
        })
    }
}

impl fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("coordinator", &self.coordinator())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tabbify_api::coordinator::Helpers;
    use tabbify_token::{PublicKey, Verifier};
    use tabbify_types::{AppId, InstanceId};

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    #[test]
    fn a_ticket_is_of_one_instance_and_soon_over() {
        let (root, signing) = (
            SecretKey::from_seed(&[1; 32]),
            SecretKey::from_seed(&[2; 32]),
        );
        let at = CoordinatorAt {
            doors: Vec::new(),
            root: root.public(),
            issuers: Vec::new(),
            outage_grace_ms: 0,
            helpers: Helpers::default(),
            ask_nat: false,
        };
        let certificate: Certificate = Arc::new(|| "certificate".to_owned());
        let identity = Identity::new(certificate, signing.clone(), Arc::new(move || at.clone()));
        let of = InstanceRef {
            app: AppId::mint(),
            instance: InstanceId(3),
        };
        let spawn = identity.ticket(of, NOW).unwrap();
        assert_eq!(spawn.certificate, "certificate");
        let key = PublicKey::try_from(signing.public()).unwrap();
        let verifier = Verifier::new(PlatformId::of(&root.public())).with_key(key);
        let opened = verifier.verify_document(DocumentType::SpawnTicket, &spawn.ticket);
        let ticket: SpawnTicket = opened.unwrap();
        assert_eq!((ticket.app, ticket.instance), (of.app, of.instance));
        assert_eq!(ticket.not_after, NOW.plus(TICKET_LIFE));
        // Where the coordinator is, and nothing else: neither what signs nor what is shown to it.
        let shown = format!(
            "Identity {{ coordinator: {:?}, .. }}",
            identity.coordinator()
        );
        assert_eq!(format!("{identity:?}"), shown);
    }
}
