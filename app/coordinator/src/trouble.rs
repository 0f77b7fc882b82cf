//! Machines that are not to run what was placed on them: they have left, are lost, or are to be emptied.
//! A part of the [`State`], and what it says about apps.
//!
//! ```text
//!   supervisor_lost, supervisor_drain_requested, peer_left ─▶ troubles ─┐
//!                                     what is placed where ─▶ homes ────┴▶ unsettled: apps that plan looks at
//! ```

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tabbify_types::event::v1::{InstanceRef, SupervisorDrainRequested};
use tabbify_types::{
    AppId, ByteSize, EventId, HostName, InstanceId, Position, Recorded, SlotId, Timestamp,
};

use crate::app::{App, Instance};
use crate::plan::REPLACEMENTS_MAX;
use crate::report::has_lived_long;
use crate::state::State;

/// An event that something follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Its position.
    pub position: Position,
    /// Its id: those of what follows derive from it.
    pub id: EventId,
}

impl Mark {
    /// Of this event.
    #[must_use]
    pub const fn of(recorded: &Recorded) -> Self {
        Self {
            position: recorded.position,
            id: recorded.id,
        }
    }
}

/// What is wrong with a machine; at least one thing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// It is no member any more, and what was placed there has not been given up yet.
    pub left: Option<Mark>,
    /// Nothing was heard of it for too long.
    pub lost: Option<Mark>,
    /// Somebody wants it empty.
    pub draining: Option<Drain>,
}

/// A wish that a machine be empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The request.
    pub mark: Mark,
    /// Who asked for it.
    pub by: String,
    /// Whether it was said that the machine is empty.
    pub done: bool,
}

impl Trouble {
    /// The gravest of what is wrong.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        let draining = self.draining.as_ref().map(|drain| drain.mark);
        self.left.or(self.lost).or(draining)
    }

    /// Whether nothing that was placed there can be reached.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        self.left.is_some() || self.lost.is_some()
    }

    /// What is wrong, for people, after the machine's name.
    #[must_use]
    pub const fn says(&self) -> &'static str {
        match self {
            Self { left: Some(_), .. } => "it has left",
            Self { lost: Some(_), .. } => "it is lost",
            _ => "it is being emptied",
        }
    }
}

impl State {
    /// Whether nothing was heard of the machine for too long.
    #[must_use]
    pub fn is_lost(&self, host: &HostName) -> bool {
        let trouble = self.troubles.get(host);
        trouble.is_some_and(|trouble| trouble.lost.is_some())
    }

    /// The wish that the machine be empty.
    #[must_use]
    pub fn drain_of(&self, host: &HostName) -> Option<&Drain> {
        self.troubles.get(host)?.draining.as_ref()
    }

    /// How many instances were placed on the machine and have not ended.
    #[must_use]
    pub fn load(&self, host: &HostName) -> usize {
        self.homes.get(host).map_or(0, BTreeSet::len)
    }

    /// The memory that what was placed on the machine and has not ended may use, in bytes.
    #[must_use]
    pub fn promised(&self, host: &HostName) -> u64 {
        self.promised.get(host).copied().unwrap_or_default()
    }

    /// Whether the instance runs where nothing stands against it.
    pub(crate) fn is_well(&self, instance: &Instance) -> bool {
        !instance.stop_requested && !self.troubles.contains_key(&instance.host)
    }

    /// The machine can run apps.
    pub(crate) fn well(&mut self, host: &HostName) {
        if self.troubles.remove(host).is_some() {
            self.look_at_apps_on(host);
        }
    }

    pub(crate) fn lost(&mut self, recorded: &Recorded, host: &HostName) {
        if self.supervisors.contains_key(host) {
            let trouble = self.troubles.entry(host.clone()).or_default();
            trouble.lost = Some(Mark::of(recorded));
            self.look_at_apps_from(host, recorded.at);
        }
    }

    pub(crate) fn emptying(&mut self, recorded: &Recorded, data: SupervisorDrainRequested) {
        if self.supervisors.contains_key(&data.host) {
            let trouble = self.troubles.entry(data.host.clone()).or_default();
            trouble.draining = Some(Drain {
                mark: Mark::of(recorded),
                by: data.by,
                done: false,
            });
            self.look_at_apps_from(&data.host, recorded.at);
        }
    }

    pub(crate) fn drained(&mut self, host: &HostName) {
        let trouble = self.troubles.get_mut(host);
        if let Some(drain) = trouble.and_then(|trouble| trouble.draining.as_mut()) {
            drain.done = true;
        }
    }

    /// The machine is no member any more: what is there is given up.
    pub(crate) fn deserted(&mut self, recorded: &Recorded, host: &HostName) {
        self.supervisors.remove(host);
        self.troubles.remove(host);
        if self.load(host) > 0 {
            let left = Some(Mark::of(recorded));
            let trouble = Trouble {
                left,
                ..Trouble::default()
            };
            self.troubles.insert(host.clone(), trouble);
            self.look_at_apps_from(host, recorded.at);
        }
    }

    pub(crate) fn moved_in(&mut self, host: &HostName, of: InstanceRef, memory: ByteSize) {
        if self.homes.entry(host.clone()).or_default().insert(of) {
            let promised = self.promised.entry(host.clone()).or_default();
            *promised = promised.saturating_add(memory.bytes());
        }
        self.look_at(of.app);
    }

    pub(crate) fn moved_out(&mut self, host: &HostName, of: InstanceRef, memory: ByteSize) {
        if let Some(home) = self.homes.get_mut(host) {
            if home.remove(&of)
                && let Some(promised) = self.promised.get_mut(host)
            {
                *promised = promised.saturating_sub(memory.bytes());
            }
            if home.is_empty() {
                self.homes.remove(host);
                self.promised.remove(host);
                // A machine that has left and has nothing any more is forgotten.
                if self.troubles.get(host).is_some_and(|it| it.left.is_some()) {
                    self.troubles.remove(host);
                }
            }
        }
        self.look_at(of.app);
    }

    /// Notes whether [`crate::plan`] must look at the app.
    pub(crate) fn look_at(&mut self, id: AppId) {
        let Some(app) = self.apps.get(&id) else {
            return;
        };
        let is_unsettled =
            app.unavailable.is_some() || self.has_to_move(app) || !self.vacant(app).is_empty();
        if is_unsettled {
            self.unsettled.insert(id);
        } else {
            self.unsettled.remove(&id);
        }
    }

    /// The instances of an app that get traffic and can be reached, as far as is known.
    pub(crate) fn in_service(&self, app: &App) -> BTreeSet<InstanceId> {
        let reachable = |instance: &InstanceId| {
            let living = app.instances.get(instance);
            let trouble = living.and_then(|living| self.troubles.get(&living.host));
            app.lives(*instance) && !trouble.is_some_and(Trouble::is_gone)
        };
        let serving = app.serving.iter().flat_map(|serving| &serving.instances);
        serving.copied().filter(reachable).collect()
    }

    /// Slots of what serves that are to be filled again, while others of it do serve: where nothing does, the
    /// app is unavailable.
    pub(crate) fn vacant(&self, app: &App) -> Vec<SlotId> {
        let mut vacant = app.unfilled();
        vacant.retain(|slot| app.replaced(*slot) < REPLACEMENTS_MAX);
        if !vacant.is_empty() && self.in_service(app).is_empty() {
            vacant.clear();
        }
        vacant
    }

    fn has_to_move(&self, app: &App) -> bool {
        let moves = |it: &Instance| {
            let trouble = self.troubles.get(&it.host);
            trouble.is_some_and(|trouble| trouble.is_gone() || !it.stop_requested)
        };
        app.instances.values().any(moves)
    }

    fn look_at_apps_on(&mut self, host: &HostName) {
        let home = self.homes.get(host).into_iter().flatten();
        let apps: BTreeSet<AppId> = home.map(|of| of.app).collect();
        for id in apps {
            self.look_at(id);
        }
    }

    /// As [`Self::look_at_apps_on`], when something begins to be wrong with the machine: its instances do
    /// not end by a fault of their own.
    fn look_at_apps_from(&mut self, host: &HostName, at: Timestamp) {
        for of in self.homes.get(host).into_iter().flatten() {
            if let Some(app) = self.apps.get_mut(&of.app)
                && let Some(instance) = app.instances.get(&of.instance)
                && has_lived_long(instance, at)
            {
                app.replaced.remove(&instance.slot);
            }
        }
        self.look_at_apps_on(host);
    }
}
