//! What the coordinator is told about the machine that it runs on.

use tabbify_types::event::v1::Capability;
use tabbify_types::{ByteSize, HostName, MeshKey};

/// The machine of this process, as it joins.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name.
    pub host: HostName,
    /// Its WireGuard key.
    pub key: MeshKey,
    /// Tags that the operator gave it; these authorize.
    pub tags: Vec<String>,
    /// What it has been seen to be able to do.
    pub capabilities: Vec<Capability>,
    /// The memory that it has for apps; none if that is not known: then as much is placed as is asked for.
    pub memory: Option<ByteSize>,
}
