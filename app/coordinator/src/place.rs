//! Picks a machine for an instance, and says why none can. Pure; the same state gives the same machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use tabbify_types::event::v1::{Capability, Machines, Placement, RunConfig, RuntimeKind};
use tabbify_types::{AppId, ByteSize, DeployId, HostName, SlotId, Tenant};

use crate::app::{App, Release};
use crate::join::tenant_of;
use crate::state::{Machine, State};

/// How much more memory than a machine has may be promised to apps on it, in hundredths, unless it is said
/// otherwise: an app rarely uses the most that it may.
pub const OVERCOMMIT_PERCENT: u32 = 400;

/// LIMIT: machines that are named when none can.
const NAMED_MAX: usize = 16;

/// The name of a runtime, as capabilities and manifests write it.
#[must_use]
pub const fn runtime_name(runtime: RuntimeKind) -> &'static str {
    match runtime {
        RuntimeKind::WasmHttp => "wasm-http",
        RuntimeKind::Docker => "docker",
        RuntimeKind::Firecracker => "firecracker",
    }
}

/// An instance that needs a machine.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Of which app.
    pub id: AppId,
    /// The same.
    pub app: &'a App,
    /// For which deploy: its instances are kept apart.
    pub deploy: DeployId,
    /// What it runs.
    pub release: &'a Release,
    /// The slot that it is to fill.
    pub slot: SlotId,
}

impl<'a> Wanted<'a> {
    /// What it needs to run.
    #[must_use]
    pub fn run(&self) -> &'a RunConfig {
        self.release.run_in(self.slot)
    }

    /// Where it may run.
    #[must_use]
    pub fn placement(&self) -> &'a Placement {
        self.release.placement_in(self.slot)
    }

    /// The machine that has the app's volume, if it has one already.
    #[must_use]
    pub fn volume_on(&self) -> Option<&HostName> {
        let has_one = self.release.has_volume();
        self.app.volume_on.as_ref().filter(|_| has_one)
    }
}

/// What machines are asked for: whoever asks the same gets the same answer.
type Question = (
    Tenant,
    &'static str,
    ByteSize,
    Option<HostName>,
    Option<String>,
    Option<HostName>,
);

/// Where there is room, while a plan is made: what the plan itself places counts, so that what one machine
/// leaves behind is spread over the others.
#[derive(Debug, Clone)]
pub struct Room<'a> {
    state: &'a State,
    overcommit_percent: u32,
    /// Instances that the plan places, and their memory in bytes.
    planned: BTreeMap<HostName, (usize, u64)>,
    /// The same of each deploy, to keep its instances apart.
    apart: BTreeMap<(DeployId, HostName), usize>,
    /// What no machine can run: asked once.
    nowhere: BTreeSet<Question>,
}

/// Why a machine does not get an instance.
enum Unfit<'a> {
    Trouble(&'static str),
    Runtime(&'a str),
    /// It is not named, or has not the tag.
    NotMeant,
    Volume,
    Memory {
        wanted: ByteSize,
        free: ByteSize,
    },
}

impl<'a> Room<'a> {
    /// As the state is, where so much memory in hundredths of a machine's own may be promised.
    #[must_use]
    pub const fn new(state: &'a State, overcommit_percent: u32) -> Self {
        Self {
            state,
            overcommit_percent,
            planned: BTreeMap::new(),
            apart: BTreeMap::new(),
            nowhere: BTreeSet::new(),
        }
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> &'a State {
        self.state
    }

    /// The machine for an instance: one that may run apps of the tenant and is meant by the app's placement, has
    /// been seen to run the runtime, is neither lost nor to be empty, and has the memory. Of several the one with
    /// the fewest instances of the same deploy, then with the fewest at all, then the first by name. A volume
    /// stays where it is, and the instance with it.
    ///
    /// # Errors
    /// Why no machine can, for people.
    pub fn pick(&mut self, wanted: &Wanted<'_>) -> Result<HostName, String> {
        let found = self.elsewhere(wanted);
        found.ok_or_else(|| self.refusal(wanted))
    }

    /// As [`Self::pick`], for whom why not is of no use.
    pub fn elsewhere(&mut self, wanted: &Wanted<'_>) -> Option<HostName> {
        // What an app with a volume has where it is ends first: one such app says nothing of another.
        let asked = (!wanted.release.has_volume()).then(|| question(wanted));
        if asked
            .as_ref()
            .is_some_and(|asked| self.nowhere.contains(asked))
        {
            return None;
        }
        let Some(host) = self.find(wanted) else {
            self.nowhere.extend(asked);
            return None;
        };
        let (instances, memory) = self.planned.entry(host.clone()).or_default();
        *instances += 1;
        *memory = memory.saturating_add(wanted.run().memory.bytes());
        let apart = self.apart.entry((wanted.deploy, host.clone()));
        *apart.or_default() += 1;
        Some(host)
    }

    /// Whether there is a machine for an instance.
    #[must_use]
    pub fn has_room_for(&self, wanted: &Wanted<'_>) -> bool {
        let known = !wanted.release.has_volume() && self.nowhere.contains(&question(wanted));
        !known && self.find(wanted).is_some()
    }

    fn find(&self, wanted: &Wanted<'_>) -> Option<HostName> {
        let apart = |host: &HostName| {
            let instances = wanted.app.instances.values();
            let same = instances.filter(|it| it.deploy == wanted.deploy && it.host == *host);
            let planned = self.apart.get(&(wanted.deploy, host.clone()));
            same.filter(|it| self.state.is_well(it)).count() + planned.copied().unwrap_or_default()
        };
        let load = |host: &HostName| {
            let planned = self
                .planned
                .get(host)
                .map_or(0, |(instances, _)| *instances);
            self.state.load(host) + planned
        };
        let able = self.state.supervisors.iter();
        let able = able.filter(|(host, machine)| {
            self.admits(host, wanted) && self.unfit(host, machine, wanted).is_none()
        });
        let able = able.map(|(host, _)| host);
        able.min_by_key(|host| (apart(host), load(host), *host))
            .cloned()
    }

    /// Whether the machine is there for apps of the tenant; to others it does not exist.
    fn admits(&self, host: &HostName, wanted: &Wanted<'_>) -> bool {
        let peer = self.state.hosts.get(host);
        let whose = peer.map(|peer| tenant_of(&peer.tags));
        whose.is_some_and(|whose| whose == wanted.app.tenant || whose == Tenant::system())
    }

    fn unfit<'w>(
        &self,
        host: &HostName,
        machine: &'w Machine,
        wanted: &Wanted<'w>,
    ) -> Option<Unfit<'w>> {
        if wanted.volume_on().is_some_and(|volume| volume != host) {
            return Some(Unfit::Volume);
        }
        let is_meant = match &wanted.placement().on {
            Machines::Any => true,
            Machines::Name(name) => name == host,
            Machines::Tag(tag) => {
                let peer = self.state.hosts.get(host);
                peer.is_some_and(|peer| peer.tags.contains(tag))
            }
        };
        if !is_meant {
            return Some(Unfit::NotMeant);
        }
        if let Some(trouble) = self.state.troubles.get(host) {
            return Some(Unfit::Trouble(trouble.says()));
        }
        let name = runtime_name(wanted.run().runtime);
        let is_it = |it: &&Capability| it.runtime == name;
        match machine.capabilities.iter().find(is_it) {
            Some(capability) if capability.works => {}
            checked => {
                let detail = checked.map_or("", |it| it.detail.trim_end_matches('.'));
                return Some(Unfit::Runtime(detail));
            }
        }
        let memory = wanted.run().memory;
        let free = self.free(host, machine.memory?, wanted);
        (free < memory).then_some(Unfit::Memory {
            wanted: memory,
            free,
        })
    }

    /// The memory that may still be promised to apps on a machine with so much.
    fn free(&self, host: &HostName, memory: ByteSize, wanted: &Wanted<'_>) -> ByteSize {
        let percent = u64::from(self.overcommit_percent);
        let most = (memory.bytes() / 100).saturating_mul(percent);
        let planned = self.planned.get(host).map_or(0, |(_, memory)| *memory);
        let mut promised = self.state.promised(host).saturating_add(planned);
        if wanted.release.has_volume() {
            // What it has there ends before the next one begins.
            let own = wanted.app.instances.values().filter(|it| it.host == *host);
            let own: u64 = own.map(|it| it.memory.bytes()).sum();
            promised = promised.saturating_sub(own);
        }
        ByteSize(most.saturating_sub(promised))
    }

    fn refusal(&self, wanted: &Wanted<'_>) -> String {
        let runtime = runtime_name(wanted.run().runtime);
        let mut text = match &wanted.placement().on {
            Machines::Any => format!("No machine can run {runtime}."),
            Machines::Name(name) => format!("{name} cannot run {runtime}."),
            Machines::Tag(tag) => format!("No machine with the tag {tag} can run {runtime}."),
        };
        let theirs = self.state.supervisors.iter();
        let theirs = theirs.filter(|(host, _)| self.admits(host, wanted));
        let why = theirs.filter_map(|(host, machine)| {
            let why = self.unfit(host, machine, wanted)?;
            Some((host, why.says()))
        });
        let named: Vec<(&HostName, String)> = why
            .filter_map(|(host, why)| why.map(|why| (host, why)))
            .collect();
        // Writing to a string does not fail.
        for (host, why) in named.iter().take(NAMED_MAX) {
            let _ = write!(text, " {host}: {why}.");
        }
        let rest = named.len().saturating_sub(NAMED_MAX);
        if rest > 0 {
            let _ = write!(text, " And {rest} more.");
        }
        if named.is_empty() {
            text.push_str(match wanted.placement().on {
                Machines::Any => " No machine has joined.",
                Machines::Name(_) => " No machine of this name has joined.",
                Machines::Tag(_) => " No machine has joined whose token claims it.",
            });
        }
        text
    }
}

impl Unfit<'_> {
    /// Why, after the machine's name; nothing of a machine that is not meant at all.
    fn says(self) -> Option<String> {
        Some(match self {
            Self::NotMeant => return None,
            Self::Trouble(says) => says.to_owned(),
            Self::Runtime("") => "cannot run it".to_owned(),
            Self::Runtime(detail) => detail.to_owned(),
            Self::Volume => "the app's volume is on another machine".to_owned(),
            Self::Memory { wanted, free } => {
                let free = rounded(free);
                format!("{free} of memory are left for apps, and it may use {wanted}")
            }
        })
    }
}

/// In whole MiB, down: for people.
const fn rounded(size: ByteSize) -> ByteSize {
    ByteSize(size.bytes() >> 20 << 20)
}

fn question(wanted: &Wanted<'_>) -> Question {
    let (run, placement) = (wanted.run(), wanted.placement());
    let (name, tag) = match &placement.on {
        Machines::Any => (None, None),
        Machines::Name(name) => (Some(name.clone()), None),
        Machines::Tag(tag) => (None, Some(tag.clone())),
    };
    (
        wanted.app.tenant.clone(),
        runtime_name(run.runtime),
        run.memory,
        name,
        tag,
        wanted.volume_on().cloned(),
    )
}
