//! The machines of the platform, as a person sees them through the node.
//!
//! The platform's owner sees every machine; others, with `machines:write`, those that run apps of their
//! tenant alone.

use serde::{Deserialize, Serialize};
use tabbify_types::event::v1::Capability;
use tabbify_types::{HostName, HostUla, Tenant, Timestamp};

/// `GET` a [`MachineList`].
pub const MACHINES_PATH: &str = "/v1/machines";

/// Begins the tag that says whose apps a machine may run, such as `tenant:main`.
pub const TENANT_TAG: &str = "tenant:";

/// The tenant whose apps a machine with these tags may run; `system` for all.
#[must_use]
pub fn tenant_of(tags: &[String]) -> Tenant {
    let mut named = tags.iter().filter_map(|tag| tag.strip_prefix(TENANT_TAG));
    let tenant = named.find_map(|slug| slug.parse().ok());
    tenant.unwrap_or_else(Tenant::system)
}

/// The machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineList {
    /// By name.
    pub machines: Vec<MachineView>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineView {
    /// Its name.
    pub host: HostName,
    /// Its address in the mesh.
    pub address: HostUla,
    /// The tenant whose apps it may run; `system` for all.
    pub tenant: Tenant,
    /// Tags that its join token claimed.
    pub tags: Vec<String>,
    /// Whether it gets work.
    pub state: MachineState,
    /// Since when.
    pub since: Timestamp,
    /// When it joined.
    pub joined: Timestamp,
    /// What it has been seen to be able to run.
    pub capabilities: Vec<Capability>,
}

/// Whether a machine gets work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// It is a member of the mesh that runs no apps.
    Member,
    /// It runs apps.
    Ready,
    /// It has not been heard of for too long: its stateless apps go elsewhere.
    Lost,
    /// It gets no new apps, and those that it has move elsewhere.
    Draining,
    /// It gets no new apps, and those that it had run elsewhere.
    Drained,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_apps_a_machine_may_run() {
        let check = |tags: &[&str], expected: &str| {
            let tags: Vec<String> = tags.iter().map(|&tag| tag.to_owned()).collect();
            assert_eq!(tenant_of(&tags).as_str(), expected, "{tags:?}");
        };
        check(&[], "system");
        check(&["gpu", "tenant:main"], "main");
        check(&["tenant:", "tenant:A"], "system");
    }
}
