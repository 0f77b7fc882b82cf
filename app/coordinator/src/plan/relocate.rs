//! What becomes of an app when a machine is lost, has left or is to be emptied: one instance and one batch
//! at a time. Pure.
//!
//! | instance | its machine is lost or has left | is to be emptied |
//! |---|---|---|
//! | serves | `app_failed`, `lease_released`, `traffic_shifted` to the others, `app_placed` elsewhere; nowhere, and no others: `app_unavailable` | `app_placed` elsewhere, and goes on until that one answers |
//! | is awaited | the same, in the same deploy; nowhere: `deploy_finished` failed | `app_placed` elsewhere, `app_stop_requested` |
//! | neither | `app_failed`, `lease_released` | `app_stop_requested` |
//!
//! A slot that stays empty, while others serve, is filled as soon as a machine has room.
//!
//! What a lost machine had is also an order to it to end: when it is back, it does not go on with what is
//! not its own any more. If nothing else can run an app, it stays the lost machine's.

use std::collections::BTreeSet;

use tabbify_types::event::EventError;
use tabbify_types::event::v1::{
    AppFailed, AppUnavailable, FailureReason, InstanceRef, LeaseReleased, UnavailableReason,
};
use tabbify_types::{AppId, DeployId, HostName, InstanceId, SlotId, VersionNumber};

use super::{Draft, REPLACEMENTS_MAX, Step};
use crate::app::{App, Instance};
use crate::place::{Room, Wanted};
use crate::trouble::{Mark, Trouble};

/// What an instance is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It gets the traffic, and nothing is about to take its place.
    Serves,
    /// It is to take the place of the one that serves, after that has died.
    Follows,
    /// The deploy under way waits for it.
    Awaited,
    /// For nothing any more.
    Idle,
}

/// The next step of an app that cannot stay as it is; none if nothing can be done now.
pub(super) fn relocate(
    room: &mut Room<'_>,
    id: AppId,
    app: &App,
) -> Result<Option<Step>, EventError> {
    for (number, living) in &app.instances {
        let Some(trouble) = room.state().troubles.get(&living.host) else {
            continue;
        };
        let Some(mark) = trouble.mark() else { continue };
        let mut draft = draft(id, app, mark, *number);
        let is_planned = if trouble.is_gone() {
            abandon(&mut draft, room, *number, living, trouble)?
        } else {
            vacate(&mut draft, room, *number, living)?
        };
        if is_planned {
            return Ok(Some(draft.step()));
        }
    }
    recover(room, id, app)
}

/// Ids that no other batch has: of this app, after this event, before another instance is placed.
fn draft(id: AppId, app: &App, mark: Mark, number: InstanceId) -> Draft<'_> {
    let last = app.last_instance;
    let seed = mark.id.derived(&format!("{id} {number} {last}"));
    Draft::new(id, app, mark.position, seed)
}

fn role(room: &Room<'_>, app: &App, number: InstanceId) -> Role {
    let lives_well = |number: &InstanceId| {
        let living = app.instances.get(number);
        living.is_some_and(|living| room.state().is_well(living))
    };
    if app.rollout.as_ref().is_some_and(|it| it.awaits(number)) {
        return Role::Awaited;
    }
    let slot = app.instances.get(&number).map(|living| living.slot);
    let successor = slot.and_then(|slot| app.successors.get(&slot));
    if successor == Some(&number) {
        return Role::Follows;
    }
    if serves(app, number) && !successor.is_some_and(lives_well) {
        Role::Serves
    } else {
        Role::Idle
    }
}

fn serves(app: &App, number: InstanceId) -> bool {
    let serving = app.serving.as_ref();
    serving.is_some_and(|it| it.instances.contains(&number))
}

/// The deploy and version that an instance with this role is of.
fn wanted(app: &App, role: Role) -> Option<(DeployId, VersionNumber)> {
    match role {
        Role::Awaited => app.rollout.as_ref().map(|it| (it.deploy, it.version)),
        Role::Serves | Role::Follows => app.serving.as_ref().map(|it| (it.deploy, it.version)),
        Role::Idle => None,
    }
}

/// A machine that can take over; why not, if there is none.
fn elsewhere(
    room: &mut Room<'_>,
    draft: &Draft<'_>,
    slot: SlotId,
    (deploy, version): (DeployId, VersionNumber),
) -> Result<HostName, UnavailableReason> {
    let app = draft.app;
    if app.replaced(slot) >= REPLACEMENTS_MAX {
        return Err(UnavailableReason::Parked);
    }
    let no_machine = UnavailableReason::NoMachine;
    let release = app.releases.get(&version).ok_or(no_machine)?;
    let wanted = Wanted {
        id: draft.id,
        app,
        deploy,
        release,
        slot,
    };
    // An app goes nowhere without its volume, and the volume nowhere by itself.
    let volume_on = wanted.volume_on();
    if volume_on.is_some_and(|host| room.state().troubles.contains_key(host)) {
        return Err(UnavailableReason::VolumeLost);
    }
    // Nor does it before whoever has it has ended.
    if release.has_volume() && app.holders().next().is_some() {
        return Err(no_machine);
    }
    room.elsewhere(&wanted).ok_or(no_machine)
}

/// Gives up an instance that cannot be reached any more.
fn abandon(
    draft: &mut Draft<'_>,
    room: &mut Room<'_>,
    number: InstanceId,
    living: &Instance,
    trouble: &Trouble,
) -> Result<bool, EventError> {
    let app = draft.app;
    let role = if living.stop_requested {
        Role::Idle
    } else {
        role(room, app, number)
    };
    let next = wanted(app, role);
    let host = next.map(|next| elsewhere(room, draft, living.slot, next));
    let others = room.state().in_service(app);
    if let Some(Err(reason)) = host
        && role != Role::Awaited
        && trouble.left.is_none()
        && others.is_empty()
    {
        // It may come back, and go on with it.
        return unavailable(draft, &living.host, trouble, reason);
    }
    let of = InstanceRef {
        app: draft.id,
        instance: number,
    };
    draft.stop(number)?;
    let failed = AppFailed {
        of,
        reason: FailureReason::Exited,
        detail: format!("Its machine is gone: {}: {}.", living.host, trouble.says()),
        log_tail: String::new(),
    };
    draft.fact("failed", &failed.into())?;
    if app.leases.contains_key(&number) {
        let released = LeaseReleased {
            app: draft.id,
            instance: number,
        };
        draft.mesh("released", &released.into())?;
    }
    if let Some(serving) = &app.serving
        && serving.instances.contains(&number)
    {
        draft.shift(serving.deploy, serving.version, &others)?;
    }
    let slot = living.slot;
    match (next, host) {
        (Some((deploy, version)), Some(Ok(host))) if role == Role::Awaited => {
            match draft.place(deploy, version, slot, host) {
                Err(EventError::Data { .. }) => {
                    draft.give_up(deploy, number, "Its configuration is too large.")?;
                }
                placed => placed?,
            }
        }
        (Some((deploy, _)), found) if role == Role::Awaited => {
            let why = format!("{}: {}.", living.host, trouble.says());
            draft.give_up(deploy, number, &why)?;
            // What served before has ended for this one, and can begin again when the machine is back.
            let serving = app.serving.as_ref();
            if found == Some(Err(UnavailableReason::VolumeLost))
                && serving.is_some_and(|it| !app.instances.contains_key(&it.primary))
            {
                unavailable(draft, &living.host, trouble, UnavailableReason::VolumeLost)?;
            }
        }
        (Some((deploy, version)), Some(Ok(host))) => {
            draft.place_if_it_fits(deploy, version, slot, host)?
        }
        (Some(_), Some(Err(reason))) if others.is_empty() => {
            unavailable(draft, &living.host, trouble, reason)?;
        }
        _ => {}
    }
    Ok(true)
}

/// Says once that the app cannot run; whether that was still to be said.
fn unavailable(
    draft: &mut Draft<'_>,
    host: &HostName,
    trouble: &Trouble,
    reason: UnavailableReason,
) -> Result<bool, EventError> {
    if draft.app.unavailable.is_some() {
        return Ok(false);
    }
    let what = match reason {
        UnavailableReason::Parked => "it has failed too often to be tried elsewhere",
        UnavailableReason::NoMachine => "no other machine can run it",
        UnavailableReason::VolumeLost => "the app's volume is there",
    };
    let says = trouble.says();
    let remedy = match reason {
        UnavailableReason::VolumeLost => format!("{host}: {says}, and {what}. Bring {host} back."),
        UnavailableReason::NoMachine | UnavailableReason::Parked => format!(
            "{host}: {says}, and {what}. Bring {host} back, or run `tabbify join` on another machine, or \
             deploy again."
        ),
    };
    let event = AppUnavailable {
        app: draft.id,
        reason,
        remedy,
    };
    draft.fact("unavailable", &event.into())?;
    Ok(true)
}

/// Moves an instance off a machine that is to be empty: first the new one, then the old one ends.
fn vacate(
    draft: &mut Draft<'_>,
    room: &mut Room<'_>,
    number: InstanceId,
    living: &Instance,
) -> Result<bool, EventError> {
    if living.stop_requested {
        return Ok(false);
    }
    let app = draft.app;
    let role = role(room, app, number);
    let Some((deploy, version)) = wanted(app, role) else {
        // The one that serves stops when its successor answers.
        if serves(app, number) {
            return Ok(false);
        }
        draft.stop(number)?;
        return Ok(true);
    };
    // A deploy under way takes over when it answers.
    if role == Role::Serves && app.rollout.is_some() {
        return Ok(false);
    }
    let slot = living.slot;
    let Ok(host) = elsewhere(room, draft, slot, (deploy, version)) else {
        return Ok(false);
    };
    match draft.place(deploy, version, slot, host) {
        Err(EventError::Data { .. }) => return Ok(false),
        placed => placed?,
    }
    if role != Role::Serves {
        draft.stop(number)?;
    }
    Ok(true)
}

/// Brings an app back that was unavailable: its machine is back, or another can run it now. Of one that others
/// of its instances serve, fills the slots that are empty.
fn recover(room: &mut Room<'_>, id: AppId, app: &App) -> Result<Option<Step>, EventError> {
    let Some(serving) = &app.serving else {
        return Ok(None);
    };
    if app.rollout.is_some() {
        return Ok(None);
    }
    let mark = app.unavailable.unwrap_or(serving.mark);
    let mut draft = draft(id, app, mark, serving.primary);
    let (deploy, version) = (serving.deploy, serving.version);
    let well = |number: &InstanceId| {
        let living = app.instances.get(number);
        living.is_some_and(|living| room.state().is_well(living))
    };
    let well: BTreeSet<_> = serving.instances.iter().copied().filter(well).collect();
    if app.unavailable.is_some() && !well.is_empty() {
        draft.shift(deploy, version, &well)?;
        return Ok(Some(draft.step()));
    }
    let follows = |number: &InstanceId| app.instances.contains_key(number);
    if app.successors.values().any(follows) {
        return Ok(None);
    }
    let empty = match app.unavailable {
        None => room.state().vacant(app),
        Some(_) => app.unfilled(),
    };
    for slot in empty {
        if let Ok(host) = elsewhere(room, &draft, slot, (deploy, version)) {
            draft.place_if_it_fits(deploy, version, slot, host)?;
        }
    }
    Ok((!draft.is_empty()).then(|| draft.step()))
}
