//! `platform.supervisors`: machines that can run apps.

use serde::{Deserialize, Serialize};

use super::{Home, home};
use crate::{ByteSize, HostName};

const SUPERVISORS: Home = home("platform.supervisors", "coordinator");

/// What a machine has been seen to be able to do. Never a tag, never read by policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// A runtime, such as `wasm-http`.
    pub runtime: String,
    /// Whether a check of it worked.
    pub works: bool,
    /// What the check saw.
    #[serde(default)]
    pub detail: String,
}

events! {
    /// A machine can run apps: it is new, was lost and is heard of again, or is to drain no more.
    SupervisorJoined = "supervisor_joined" at [SUPERVISORS] key "the host" {
        host: HostName => "The machine.",
        capabilities: Vec<Capability> => "As checked.",
        #[serde(default)] memory: Option<ByteSize> =>
            "The memory that it has for apps, if it said so.",
    }

    /// A machine has not been heard of for so long that its stateless apps go elsewhere.
    SupervisorLost = "supervisor_lost" at [SUPERVISORS] key "the host" {
        host: HostName => "The machine.",
    }

    /// A machine is to run no apps: it gets no new ones, and those that it has are to run elsewhere.
    SupervisorDrainRequested = "supervisor_drain_requested" at [SUPERVISORS] key "the host" {
        host: HostName => "The machine.",
        by: String => "Who asked for it.",
    }

    /// A machine gets no new apps, and those that it had run elsewhere.
    SupervisorDrained = "supervisor_drained" at [SUPERVISORS] key "the host" {
        host: HostName => "The machine.",
    }
}
