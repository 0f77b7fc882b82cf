//! What the host orders, and what the guest answers: the payloads of [`wire`](crate::wire).

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// What to run and where.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The app.
    pub process: Process,
    /// The guest's name for itself.
    pub hostname: String,
    /// The one interface beside loopback; none without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Whether programs find a proxy on the guest's loopback ([`crate::way`]).
    #[serde(default)]
    pub way_out: bool,
    /// LIMIT: bytes of memory that files outside the volume may take. Beyond it the disk is full.
    pub scratch_bytes: u64,
    /// A path where the second drive is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Secrets that are files in [`SECRETS_DIRECTORY`](crate::enter::SECRETS_DIRECTORY): name and content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<(String, Vec<u8>)>,
    /// Milliseconds since 1970: the guest's clock is set to it.
    pub clock_ms: u64,
    /// Randomness of the host's, credited to the guest's pool.
    pub entropy: Vec<u8>,
}

/// The guest's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its address.
    pub address: Ipv4Addr,
    /// The length of its prefix.
    pub prefix: u8,
    /// The way out; without it there is none but to neighbors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Who resolves names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<Ipv4Addr>,
}

/// A program and what it gets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program, looked for in its `PATH` if it has no slash, and its arguments.
    pub command: Vec<String>,
    /// Its whole environment. `PATH`, `HOME` and `HOSTNAME` are added where they are missing.
    pub env: Vec<(String, String)>,
    /// `name`, `id`, `name:group`, `id:id`; empty is root.
    pub user: String,
    /// Made if it is missing; empty is `/`.
    pub working_dir: String,
}

/// Runs beside the app, as its user and with its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// End the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// This signal first.
    pub signal: i32,
    /// SIGKILL after so long, in milliseconds.
    pub grace_ms: u64,
}

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// How its process did.
    pub status: Status,
    /// The kernel ended something for want of memory while it ran.
    #[serde(default)]
    pub out_of_memory: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl std::fmt::Debug for Start {
    /// Without what is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Start")
            .field("process", &self.process)
            .field("network", &self.network)
            .field("volume", &self.volume)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Process {
    /// Without the environment, where secrets are.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process")
            .field("command", &self.command)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}
