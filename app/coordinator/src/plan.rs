//! Answers open causes: for each app the oldest one, with one batch. Pure.
//!
//! | cause | answer |
//! |---|---|
//! | deploy requested | `app_placed` for every replica of every target, or `deploy_finished` failed; an unfinished deploy is superseded |
//! | the same of an app with a volume | `app_stop_requested` for what has it; once that has ended, as above |
//! | starting, drained, idled | the fact |
//! | started | the fact, `lease_granted` |
//! | woken | the fact, and `lease_granted` if it has another key |
//! | healthy, the last of the deploy's | the fact, `traffic_shifted` to all of them, `deploy_finished`, `app_stop_requested` for the rest |
//! | healthy, of a successor | the fact, `traffic_shifted` to it and the others, `app_stop_requested` for what it replaces |
//! | failed or stopped, of the deploy | the fact, `lease_released`, `deploy_finished` failed, `app_stop_requested` for the rest of it; with a volume `app_placed` of what served |
//! | failed or stopped, of what serves | the fact, `lease_released`, `traffic_shifted` to the others, `app_placed` of a successor |
//!
//! Then what machines leave behind that are lost or to be emptied: see `relocate`.

mod relocate;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use tabbify_api::log::{Append, BATCH_LEN_MAX, Expect};
use tabbify_types::event::v1::{
    AppPlaced, AppStopRequested, AppUnavailable, DeployFinished, DeployOutcome, DeploySuperseded,
    InstanceRef, LeaseGranted, LeaseReleased, TrafficShifted, UnavailableReason,
};
use tabbify_types::event::{Event, EventError};
use tabbify_types::{
    AppId, DeployId, EventId, HostName, InstanceId, MeshKey, NewEvent, Position, Rev, Segment,
    SlotId, VersionNumber,
};

use crate::app::{App, Cause, What};
use crate::place::{Room, Wanted};
use crate::state::State;

/// LIMIT: instances placed one after the other for one that died, without one of them living long.
/// Then the app stays down until the next deploy.
pub const REPLACEMENTS_MAX: u32 = 10;

/// LIMIT: instances of one version of an app. What places them is one batch, and so is what ends them.
pub const INSTANCES_MAX: usize = 128;

/// LIMIT: apps that are moved off their machines in one plan, so that what is asked for meanwhile does not
/// wait for all of them.
const MOVES_MAX: usize = 64;

/// The answer to one cause.
#[derive(Debug, Clone)]
pub struct Step {
    /// The app.
    pub app: AppId,
    /// Position of the cause.
    pub cause: Position,
    /// What to append. Its last event is one that the coordinator itself reads.
    pub batch: Append,
}

/// The answers to the oldest open cause of each app that has one: what it costs does not grow with the
/// apps that are there. Of a machine's memory, so many hundredths may be promised to apps.
///
/// # Errors
/// [`EventError`] if an event cannot be written: a fault of this program.
pub fn plan(state: &State, overcommit_percent: u32) -> Result<Vec<Step>, EventError> {
    let (mut steps, mut room) = (Vec::new(), Room::new(state, overcommit_percent));
    for id in &state.waiting {
        let Some(app) = state.apps.get(id) else {
            continue;
        };
        // A deploy that waits for a volume lets reports go first that came after it; other deploys wait, too.
        let mut waits = false;
        for (position, cause) in &app.open {
            if waits && matches!(cause.what, What::Deploy { .. }) {
                continue;
            }
            if let Some(step) = answer(&mut room, *id, app, *position, cause)? {
                steps.push(step);
                break;
            }
            waits = true;
        }
    }
    let mut moves = 0;
    for id in state.unsettled.difference(&state.waiting) {
        if moves >= MOVES_MAX {
            break;
        }
        let app = state.apps.get(id);
        if let Some(app) = app
            && let Some(step) = relocate::relocate(&mut room, *id, app)?
        {
            steps.push(step);
            moves += 1;
        }
    }
    Ok(steps)
}

fn answer(
    room: &mut Room<'_>,
    id: AppId,
    app: &App,
    position: Position,
    cause: &Cause,
) -> Result<Option<Step>, EventError> {
    let draft = || Draft::new(id, app, position, cause.id);
    let draft = match &cause.what {
        What::Deploy { deploy, version } => {
            let mut freed = draft();
            match freed.free_volume(room, *deploy, *version)? {
                Volume::Free => {}
                Volume::Held if freed.is_empty() => return Ok(None),
                Volume::Held => return Ok(Some(freed.step())),
            }
            let (mut begun, before) = (draft(), room.clone());
            let begins = begin(&mut begun, room, *deploy, *version);
            match begins {
                Ok(()) if begun.len() <= BATCH_LEN_MAX / 2 => begun,
                // What is too large for an event is the version's configuration: the same that
                // fitted, just so, into `version_published`. Or it is, with all of its instances, for a batch.
                Ok(()) | Err(EventError::Data { .. }) => {
                    *room = before;
                    let mut refused = draft();
                    let mut why = format!("The configuration of v{version} is too large");
                    let many = app.releases.get(version).map(|it| it.slots().count());
                    if let Some(many) = many.filter(|many| begins.is_ok() && *many > 1) {
                        // Writing to a string does not fail.
                        let _ = write!(why, " for {many} instances");
                    }
                    refused.fail(*deploy, &why)?;
                    refused
                }
                Err(error) => return Err(error),
            }
        }
        What::Report { of, event } => {
            let mut draft = draft();
            record(&mut draft, room, *of, event)?;
            draft
        }
    };
    Ok(Some(draft.step()))
}

/// Who has the volume of an app.
enum Volume {
    /// Nobody, or it has none.
    Free,
    /// Instances that are told to end.
    Held,
}

fn begin(
    draft: &mut Draft<'_>,
    room: &mut Room<'_>,
    deploy: DeployId,
    version: VersionNumber,
) -> Result<(), EventError> {
    let app = draft.app;
    let Some(release) = app.releases.get(&version) else {
        return draft.fail(deploy, &format!("v{version} is not published."));
    };
    let many = release.slots().take(INSTANCES_MAX + 1).count();
    if many > INSTANCES_MAX {
        let why = format!("v{version} wants more than {INSTANCES_MAX} instances of the app.");
        return draft.fail(deploy, &why);
    }
    if many > 1 && release.has_volume() {
        let why = format!("v{version} has a volume, which one instance alone can have.");
        return draft.fail(deploy, &why);
    }
    let (before, mut places) = (room.clone(), Vec::new());
    for slot in release.slots() {
        let wanted = Wanted {
            id: draft.id,
            app,
            deploy,
            release,
            slot,
        };
        match room.pick(&wanted) {
            Ok(host) => places.push((slot, host)),
            // What is under way goes on: a deploy that cannot begin takes nothing over.
            Err(mut why) => {
                *room = before;
                if many > 1 {
                    let found = places.len();
                    why.insert_str(0, &format!("{found} of {many} instances have a place. "));
                }
                draft.fail(deploy, &why)?;
                return draft.is_down_for_its_volume(&wanted, why);
            }
        }
    }
    if let Some(rollout) = &app.rollout {
        let old = rollout.deploy;
        let superseded = DeploySuperseded {
            app: draft.id,
            deploy: old,
            by: deploy,
        };
        draft.fact("superseded", &superseded.into())?;
        draft.stop_rollout(None)?;
    }
    for (slot, host) in places {
        draft.place(deploy, version, slot, host)?;
    }
    Ok(())
}

fn record(
    draft: &mut Draft<'_>,
    room: &mut Room<'_>,
    of: InstanceRef,
    event: &Event,
) -> Result<(), EventError> {
    draft.fact("fact", event)?;
    match event {
        Event::AppStarted(data) => draft.grant(of.instance, data.key),
        Event::AppWoken(data) => match data.key {
            Some(key) => draft.grant_again(of.instance, key),
            None => Ok(()),
        },
        Event::AppHealthy(_) => draft.healthy(room, of.instance),
        Event::AppFailed(data) => draft.ended(room, of.instance, &data.detail),
        Event::AppStopped(_) => draft.ended(room, of.instance, "It was stopped."),
        _ => Ok(()),
    }
}

/// A batch in the making. Orders to hosts come first and facts last, so that whoever has read its
/// last event has read all of it that the coordinator reads.
struct Draft<'a> {
    id: AppId,
    app: &'a App,
    cause: Position,
    seed: EventId,
    orders: Vec<NewEvent>,
    mesh: Vec<NewEvent>,
    facts: Vec<NewEvent>,
    /// The highest instance number that was given out.
    last: InstanceId,
    /// An instance ends with it.
    ends: bool,
}

impl<'a> Draft<'a> {
    fn new(id: AppId, app: &'a App, cause: Position, seed: EventId) -> Self {
        let (orders, mesh, facts) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            id,
            app,
            cause,
            seed,
            orders,
            mesh,
            facts,
            last: app.last_instance,
            ends: false,
        }
    }

    fn event(&self, segment: Segment, label: &str, event: &Event) -> Result<NewEvent, EventError> {
        let id = self.seed.derived(label);
        Ok(NewEvent::with_id(id, segment, self.id, event)?.caused_by(self.cause))
    }

    fn fact(&mut self, label: &str, event: &Event) -> Result<(), EventError> {
        let event = self.event(Segment::apps(&self.app.tenant), label, event)?;
        self.facts.push(event);
        Ok(())
    }

    fn mesh(&mut self, label: &str, event: &Event) -> Result<(), EventError> {
        let event = self.event(Segment::peers(), label, event)?;
        self.mesh.push(event);
        Ok(())
    }

    /// A fact, and the same as an order to a host.
    fn order(&mut self, host: &HostName, label: &str, event: &Event) -> Result<(), EventError> {
        let copy = self.event(Segment::host(host), &format!("{label} copy"), event)?;
        self.orders.push(copy);
        self.fact(label, event)
    }

    fn place(
        &mut self,
        deploy: DeployId,
        version: VersionNumber,
        slot: SlotId,
        host: HostName,
    ) -> Result<(), EventError> {
        let Some(release) = self.app.releases.get(&version) else {
            return Ok(());
        };
        let epoch = self
            .app
            .epochs
            .get(&slot)
            .copied()
            .unwrap_or_default()
            .next();
        let placed = AppPlaced {
            app: self.id,
            tenant: self.app.tenant.clone(),
            deploy,
            version,
            host: host.clone(),
            slot,
            epoch,
            instance: self.last.next(),
            artifact: release.artifact,
            run: release.run_in(slot).clone(),
        };
        let label = match slot {
            SlotId::FIRST => "placed".to_owned(),
            slot => format!("placed {slot}"),
        };
        self.order(&host, &label, &placed.into())?;
        self.last = self.last.next();
        Ok(())
    }

    /// The answer, if this is all of it.
    fn step(self) -> Step {
        Step {
            app: self.id,
            cause: self.cause,
            batch: self.batch(),
        }
    }

    /// The bytes of what its events say.
    fn len(&self) -> usize {
        let events = [&self.orders, &self.mesh, &self.facts]
            .into_iter()
            .flatten();
        events.map(|event| event.data.get().len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.orders.is_empty() && self.mesh.is_empty() && self.facts.is_empty()
    }

    /// A volume has one holder: whoever has it ends before the next one is placed. Nobody ends for a version
    /// that no machine could run.
    fn free_volume(
        &mut self,
        room: &Room<'_>,
        deploy: DeployId,
        version: VersionNumber,
    ) -> Result<Volume, EventError> {
        let app = self.app;
        let release = app.releases.get(&version);
        let Some(release) = release.filter(|release| release.has_volume()) else {
            return Ok(Volume::Free);
        };
        let wanted = Wanted {
            id: self.id,
            app,
            deploy,
            release,
            slot: SlotId::FIRST,
        };
        let is_alone = release.slots().nth(1).is_none();
        if app.holders().next().is_none() || !is_alone || !room.has_room_for(&wanted) {
            return Ok(Volume::Free);
        }
        if let Some(rollout) = &app.rollout {
            let superseded = DeploySuperseded {
                app: self.id,
                deploy: rollout.deploy,
                by: deploy,
            };
            self.fact("superseded", &superseded.into())?;
            self.stop_rollout(None)?;
        }
        let is_awaited = |it: &InstanceId| app.rollout.as_ref().is_some_and(|all| all.awaits(*it));
        for instance in app.holders().filter(|it| !is_awaited(it)) {
            self.stop(instance)?;
        }
        Ok(Volume::Held)
    }

    /// What served has ended so that another version could have the volume, and that one cannot begin: what
    /// served begins again once it can.
    fn is_down_for_its_volume(
        &mut self,
        wanted: &Wanted<'_>,
        why: String,
    ) -> Result<(), EventError> {
        let app = self.app;
        let lives = |it: &InstanceId| {
            let living = app.instances.get(it);
            living.is_some_and(|living| !living.stop_requested)
        };
        let Some(serving) = &app.serving else {
            return Ok(());
        };
        let is_down = !lives(&serving.primary) && !app.successors.values().any(lives);
        if wanted.volume_on().is_none() || !is_down || app.unavailable.is_some() {
            return Ok(());
        }
        let unavailable = AppUnavailable {
            app: self.id,
            reason: UnavailableReason::VolumeLost,
            remedy: why,
        };
        self.fact("unavailable", &unavailable.into())
    }

    /// Tells an instance to end, if it lives and has not been told.
    fn stop(&mut self, instance: InstanceId) -> Result<(), EventError> {
        let Some(living) = self.app.instances.get(&instance) else {
            return Ok(());
        };
        if living.stop_requested {
            return Ok(());
        }
        let release = self.app.releases.get(&living.version);
        let drain_ms = release.map_or(0, |it| it.run_in(living.slot).stop_timeout_ms);
        let of = InstanceRef {
            app: self.id,
            instance,
        };
        let stop = AppStopRequested { of, drain_ms };
        self.order(&living.host, &format!("stop {instance}"), &stop.into())
    }

    fn grant(&mut self, instance: InstanceId, key: MeshKey) -> Result<(), EventError> {
        // It may have shown its spawn ticket already.
        if self.app.leases.contains_key(&instance) {
            return Ok(());
        }
        self.grant_again(instance, key)
    }

    /// The same for an instance whose earlier process had one: it has ended.
    fn grant_again(&mut self, instance: InstanceId, key: MeshKey) -> Result<(), EventError> {
        let Some(living) = self.app.instances.get(&instance) else {
            return Ok(());
        };
        let lease = self.app.leases.get(&instance);
        if lease.is_some_and(|lease| lease.key == key) {
            return Ok(());
        }
        let lease = LeaseGranted {
            app: self.id,
            tenant: self.app.tenant.clone(),
            slot: living.slot,
            epoch: living.epoch,
            instance,
            key,
            host: living.host.clone(),
        };
        self.mesh("granted", &lease.into())
    }

    /// Tells the instances of the deploy under way to end, but for one that has.
    fn stop_rollout(&mut self, ended: Option<InstanceId>) -> Result<(), EventError> {
        let rollout = self.app.rollout.iter();
        for instance in rollout.flat_map(|rollout| rollout.instances.values()) {
            if Some(*instance) != ended {
                self.stop(*instance)?;
            }
        }
        Ok(())
    }

    /// The deploy under way has failed with one of its instances: the others end.
    fn give_up(
        &mut self,
        deploy: DeployId,
        instance: InstanceId,
        why: &str,
    ) -> Result<(), EventError> {
        self.fail(deploy, why)?;
        self.stop_rollout(Some(instance))
    }

    /// What serves may have been replaced while the deploy was under way, by instances with later epochs. Theirs
    /// must be later still, or nobody would believe that the app's address is theirs.
    fn raise_epochs(&mut self, all: &BTreeSet<InstanceId>) -> Result<(), EventError> {
        let app = self.app;
        for lease in all.iter().filter_map(|it| app.leases.get(it)) {
            let last = app.epochs.get(&lease.slot).copied().unwrap_or_default();
            if last > lease.epoch {
                let raised = LeaseGranted {
                    epoch: last.next(),
                    ..lease.clone()
                };
                self.mesh(&format!("raised {}", lease.instance), &raised.into())?;
            }
        }
        Ok(())
    }

    /// From here on these get the traffic. Whoever the app's address means stays, if it is one of them.
    fn shift(
        &mut self,
        deploy: DeployId,
        version: VersionNumber,
        all: &BTreeSet<InstanceId>,
    ) -> Result<(), EventError> {
        let app = self.app;
        let primary = app.serving.as_ref().map(|serving| serving.primary);
        let by_slot = |it: &&InstanceId| app.instances.get(it).map(|living| living.slot);
        let first = || all.iter().min_by_key(by_slot).copied();
        let Some(primary) = primary.filter(|it| all.contains(it)).or_else(first) else {
            return Ok(());
        };
        let shifted = TrafficShifted {
            app: self.id,
            deploy,
            version,
            instances: all.iter().copied().collect(),
            primary,
        };
        self.fact("shifted", &shifted.into())
    }

    /// The instance answers: if it is one that is waited for, and the last of them, they get the traffic.
    fn healthy(&mut self, room: &Room<'_>, instance: InstanceId) -> Result<(), EventError> {
        let app = self.app;
        let Some(slot) = app.instances.get(&instance).map(|it| it.slot) else {
            return Ok(());
        };
        let rollout = app.rollout.as_ref().filter(|it| it.awaits(instance));
        let serving = app.serving.as_ref();
        let serving = serving.filter(|_| app.successors.get(&slot) == Some(&instance));
        let (all, mut keep) = match (rollout, serving) {
            (Some(rollout), _) => {
                let mut others = rollout.instances.values().filter(|it| **it != instance);
                if !others.all(|it| app.answers(*it)) {
                    return Ok(());
                }
                let all: BTreeSet<InstanceId> = rollout.instances.values().copied().collect();
                self.raise_epochs(&all)?;
                self.shift(rollout.deploy, rollout.version, &all)?;
                self.finish(rollout.deploy, DeployOutcome::Succeeded, String::new())?;
                (all, BTreeSet::new())
            }
            (None, Some(serving)) => {
                let mut all = room.state().in_service(app);
                all.retain(|it| app.instances.get(it).is_some_and(|it| it.slot != slot));
                all.insert(instance);
                self.shift(serving.deploy, serving.version, &all)?;
                // A successor ends neither others nor the deploy that is under way beside it.
                let awaited = app.rollout.iter().flat_map(|it| it.instances.values());
                let keep = app.successors.values().chain(awaited).copied().collect();
                (all, keep)
            }
            (None, None) => return Ok(()),
        };
        keep.extend(all);
        for other in app.instances.keys().filter(|it| !keep.contains(it)) {
            self.stop(*other)?;
        }
        Ok(())
    }

    /// The instance is gone.
    fn ended(
        &mut self,
        room: &mut Room<'_>,
        instance: InstanceId,
        detail: &str,
    ) -> Result<(), EventError> {
        let app = self.app;
        self.ends = true;
        if app.leases.contains_key(&instance) {
            let released = LeaseReleased {
                app: self.id,
                instance,
            };
            self.mesh("released", &released.into())?;
        }
        let awaited = app.rollout.as_ref().filter(|it| it.awaits(instance));
        if let Some(rollout) = awaited {
            self.give_up(rollout.deploy, instance, detail)?;
        }
        let (Some(serving), Some(ended)) = (&app.serving, app.instances.get(&instance)) else {
            return Ok(());
        };
        let Some(release) = app.releases.get(&serving.version) else {
            return Ok(());
        };
        let served = serving.instances.contains(&instance);
        let others = room.state().in_service(app);
        if served && !others.is_empty() {
            self.shift(serving.deploy, serving.version, &others)?;
        }
        let slot = ended.slot;
        let was_to_serve = served || app.successors.get(&slot) == Some(&instance);
        // What served before had to end so that this one could have the volume: it gets it back.
        let has_volume = release.has_volume();
        let gives_back =
            awaited.is_some() && has_volume && !app.instances.contains_key(&serving.primary);
        let is_held = has_volume && app.holders().any(|it| it != instance);
        let is_parked = app.replaced(slot) >= REPLACEMENTS_MAX;
        if !(was_to_serve || gives_back) || ended.stop_requested || is_held || is_parked {
            return Ok(());
        }
        let wanted = Wanted {
            id: self.id,
            app,
            deploy: serving.deploy,
            release,
            slot,
        };
        // If no machine can take it, it stays down, as its `app_failed` says, until one can.
        let Some(host) = room.elsewhere(&wanted) else {
            return Ok(());
        };
        self.place_if_it_fits(serving.deploy, serving.version, slot, host)
    }

    /// Places what was placed before, on another machine: one with a longer name can make a configuration
    /// too large for an event that just fitted. Then it stays down.
    fn place_if_it_fits(
        &mut self,
        deploy: DeployId,
        version: VersionNumber,
        slot: SlotId,
        host: HostName,
    ) -> Result<(), EventError> {
        match self.place(deploy, version, slot, host) {
            Err(EventError::Data { .. }) => Ok(()),
            placed => placed,
        }
    }

    fn fail(&mut self, deploy: DeployId, why: &str) -> Result<(), EventError> {
        let mut detail = why.trim_end().to_owned();
        if !detail.ends_with(['.', '!', '?']) {
            detail.push('.');
        }
        if let Some(version) = self.app.served() {
            // Writing to a string does not fail.
            let _ = write!(detail, " v{version} still serves.");
        }
        self.finish(deploy, DeployOutcome::Failed, detail)
    }

    fn finish(
        &mut self,
        deploy: DeployId,
        outcome: DeployOutcome,
        detail: String,
    ) -> Result<(), EventError> {
        let finished = DeployFinished {
            app: self.id,
            deploy,
            outcome,
            detail,
        };
        self.fact("finished", &finished.into())
    }

    fn batch(self) -> Append {
        let expect = if self.app.rev == Rev(0) {
            Expect::None
        } else {
            Expect::Rev(self.app.rev)
        };
        let segment = Segment::apps(&self.app.tenant);
        let leases = self.ends || !self.mesh.is_empty();
        let events = [self.orders, self.mesh, self.facts].concat();
        let batch = Append::of(events).expecting(segment, self.id.to_string(), expect);
        if !leases {
            return batch;
        }
        // A lease is also given for a spawn ticket, which moves nothing in the tenant's segment: one that
        // is given meanwhile to what ends here would never be released.
        let expect = match self.app.mesh_rev {
            Rev(0) => Expect::None,
            rev => Expect::Rev(rev),
        };
        batch.expecting(Segment::peers(), self.id.to_string(), expect)
    }
}

#[cfg(test)]
mod tests;
