//! Gives an instance its lease for a spawn ticket. Pure.
//!
//! ```text
//!   issuer ─signs─▶ certificate of a machine ─its key signs─▶ ticket of an instance ─▶ lease of the key
//!                   that is a member now          that was placed there            that showed it first
//! ```
//!
//! A ticket counts once: the lease is written with the revision of the app's leases that was seen, so of
//! two keys, at two coordinators, one gets it.

use tabbify_api::coordinator::{HostCertificate, SpawnTicket};
use tabbify_api::log::{Append, Expect};
use tabbify_process::chain;
use tabbify_types::event::v1::{InstanceRef, LeaseGranted};
use tabbify_types::event::{Event, EventError};
use tabbify_types::{MeshKey, NewEvent, Rev, Segment, Timestamp};

use crate::app::Phase;
use crate::refusal::Refusal;
use crate::state::State;

/// What is missing in the log for `key` to have the lease; `None` if it has it.
pub(crate) fn exchange(
    state: &State,
    certificate: &HostCertificate,
    ticket: &SpawnTicket,
    key: &MeshKey,
    now: Timestamp,
) -> Result<Option<Append>, Refusal> {
    let forbidden = |text: &str| Refusal::Forbidden(text.to_owned());
    if certificate.not_after <= now {
        return Err(forbidden("the machine's certificate has ended"));
    }
    if ticket.not_after <= now {
        return Err(forbidden("the spawn ticket has ended"));
    }
    let member = state.hosts.get(&certificate.host);
    if member.is_none_or(|member| member.key != certificate.key) {
        return Err(forbidden("the machine is no member any more"));
    }
    let app = state.apps.get(&ticket.app);
    let instance = app.and_then(|app| app.instances.get(&ticket.instance));
    let placed = instance.filter(|instance| instance.host == certificate.host);
    let (Some(app), Some(instance)) = (app, placed) else {
        return Err(forbidden("the instance was not placed on this machine"));
    };
    let of = InstanceRef {
        app: ticket.app,
        instance: ticket.instance,
    };
    let other = || Refusal::Conflict("the spawn ticket was used by another key".to_owned());
    // The process that had the lease of an idle instance has ended, or is about to: its key counts no more.
    let lease = app.leases.get(&ticket.instance);
    match lease {
        Some(lease) if lease.key == *key => return Ok(None),
        Some(_) if !instance.rekeys => return Err(other()),
        _ => {}
    }
    if !instance.rekeys && instance.key.is_some_and(|known| known != *key) {
        return Err(other());
    }
    if instance.reported >= Phase::Ended || instance.stop_requested {
        return Err(forbidden("the instance is to end"));
    }
    if !state.may_have(key, of) {
        return Err(Refusal::Conflict("the key belongs to another".to_owned()));
    }
    let granted = LeaseGranted {
        app: ticket.app,
        tenant: app.tenant.clone(),
        slot: instance.slot,
        epoch: instance.epoch,
        instance: ticket.instance,
        key: *key,
        host: certificate.host.clone(),
    };
    let event = NewEvent::new(Segment::peers(), ticket.app, &Event::from(granted));
    let invalid = |error: EventError| Refusal::Invalid(chain(&error).to_string());
    let expect = match app.mesh_rev {
        Rev(0) => Expect::None,
        rev => Expect::Rev(rev),
    };
    let batch = Append::of(vec![event.map_err(invalid)?]);
    Ok(Some(batch.expecting(
        Segment::peers(),
        ticket.app.to_string(),
        expect,
    )))
}
