//! Picks a machine for an instance. Pure; the same state gives the same machine.

use std::collections::{BTreeMap, BTreeSet};

use tabbify_types::event::v1::RuntimeKind;
use tabbify_types::{HostName, Tenant};

use crate::join::tenant_of;
use crate::state::State;

/// The name of a runtime, as capabilities and manifests write it.
#[must_use]
pub const fn runtime_name(runtime: RuntimeKind) -> &'static str {
    match runtime {
        RuntimeKind::WasmHttp => "wasm-http",
        RuntimeKind::Docker => "docker",
        RuntimeKind::Firecracker => "firecracker",
    }
}

/// Where there is room, while a plan is made: what the plan itself places counts, so that what one machine
/// leaves behind is spread over the others.
#[derive(Debug)]
pub struct Room<'a> {
    state: &'a State,
    planned: BTreeMap<HostName, usize>,
    /// What no machine can run: asked once.
    nowhere: BTreeSet<(Tenant, &'static str)>,
}

impl<'a> Room<'a> {
    /// As the state is.
    #[must_use]
    pub const fn new(state: &'a State) -> Self {
        Self {
            state,
            planned: BTreeMap::new(),
            nowhere: BTreeSet::new(),
        }
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> &'a State {
        self.state
    }

    /// The machine that may run apps of `tenant`, has been seen to run `runtime`, is neither lost nor to be
    /// empty, and has the fewest instances; of several, the first by name.
    ///
    /// # Errors
    /// Why no machine can, for people.
    pub fn pick(&mut self, tenant: &Tenant, runtime: RuntimeKind) -> Result<HostName, String> {
        let found = self.elsewhere(tenant, runtime);
        found.ok_or_else(|| refusal(self.state, runtime_name(runtime)))
    }

    /// As [`Self::pick`], for whom why not is of no use.
    pub fn elsewhere(&mut self, tenant: &Tenant, runtime: RuntimeKind) -> Option<HostName> {
        let name = runtime_name(runtime);
        if self.nowhere.contains(&(tenant.clone(), name)) {
            return None;
        }
        let Some(host) = self.find(tenant, name) else {
            self.nowhere.insert((tenant.clone(), name));
            return None;
        };
        *self.planned.entry(host.clone()).or_default() += 1;
        Some(host)
    }

    fn find(&self, tenant: &Tenant, name: &str) -> Option<HostName> {
        let state = self.state;
        let load = |host: &HostName| {
            let planned = self.planned.get(host).copied().unwrap_or_default();
            state.load(host) + planned
        };
        let admits = |host: &HostName| {
            let peer = state.hosts.get(host);
            let whose = peer.map(|peer| tenant_of(&peer.tags));
            whose.is_some_and(|whose| whose == *tenant || whose == Tenant::system())
        };
        let able = state.supervisors.iter().filter(|(host, capabilities)| {
            !state.troubles.contains_key(*host)
                && admits(host)
                && capabilities
                    .iter()
                    .any(|capability| capability.works && capability.runtime == name)
        });
        let able = able.map(|(host, _)| host);
        able.min_by_key(|host| (load(host), *host)).cloned()
    }
}

fn refusal(state: &State, name: &str) -> String {
    let mut text = format!("No machine can run {name}.");
    if state.supervisors.is_empty() {
        text.push_str(" No machine has joined.");
    }
    for (host, capabilities) in &state.supervisors {
        if let Some(trouble) = state.troubles.get(host) {
            text.push_str(&format!(" {host}: {}.", trouble.says()));
            continue;
        }
        let checked = capabilities
            .iter()
            .find(|capability| capability.runtime == name);
        let detail = checked.map(|capability| capability.detail.trim_end_matches('.'));
        let detail = detail
            .filter(|detail| !detail.is_empty())
            .unwrap_or("cannot run it");
        text.push_str(&format!(" {host}: {detail}."));
    }
    text
}
