//! Picks a machine for an instance. Pure; the same state gives the same machine.

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

/// The machine that may run apps of `tenant`, has been seen to run `runtime` and has the fewest
/// instances; of several, the first by name.
///
/// # Errors
/// Why no machine can, for people.
pub fn pick(state: &State, tenant: &Tenant, runtime: RuntimeKind) -> Result<HostName, String> {
    let name = runtime_name(runtime);
    let load = |host: &HostName| state.load.get(host).copied().unwrap_or_default();
    let admits = |host: &HostName| {
        let peer = state.hosts.get(host);
        let whose = peer.map(|peer| tenant_of(&peer.tags));
        whose.is_some_and(|whose| whose == *tenant || whose == Tenant::system())
    };
    let able = state.supervisors.iter().filter(|(host, capabilities)| {
        admits(host)
            && capabilities
                .iter()
                .any(|capability| capability.works && capability.runtime == name)
    });
    let picked = able
        .map(|(host, _)| host)
        .min_by_key(|host| (load(host), (*host).clone()));
    picked.cloned().ok_or_else(|| refusal(state, name))
}

fn refusal(state: &State, name: &str) -> String {
    let mut text = format!("No machine can run {name}.");
    if state.supervisors.is_empty() {
        text.push_str(" No machine has joined.");
    }
    for (host, capabilities) in &state.supervisors {
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
