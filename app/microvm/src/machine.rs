//! What a machine is made of.

use std::fmt;
use std::path::PathBuf;

use tabbify_api::runner::MicroVms;
use tabbify_guest_init::order::Process;
use tabbify_types::ByteSize;

/// The files of the host that every machine needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    /// The guest's kernel: an uncompressed `vmlinux` or a `bzImage`.
    pub kernel: PathBuf,
    /// Its modules, as in `/lib/modules/<release>`; none for a kernel that has everything built in.
    pub modules: Option<PathBuf>,
    /// `tabbify-guest-init`, linked statically.
    pub init: PathBuf,
    /// The monitor's program; without, the usual one by its name.
    pub monitor: Option<PathBuf>,
    /// Where what is made of these is kept, and what is known of the host.
    pub state: PathBuf,
}

impl Assets {
    /// What a machine of the platform has, with a directory for what is made of it.
    #[must_use]
    pub fn new(of: &MicroVms, state: PathBuf) -> Self {
        Self {
            kernel: of.kernel.clone(),
            modules: of.modules.clone(),
            init: of.init.clone(),
            monitor: of.monitor.clone(),
            state,
        }
    }
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its own directory: made for it, removed when it is over. What is left there of a machine whose
    /// owner was killed is removed first.
    pub directory: PathBuf,
    /// The root file system of the image, a squashfs; only read, and shared by any number of machines.
    pub root: PathBuf,
    /// A drive of its own, as [`volume`](crate::volume) makes it. It must have no other user.
    pub volume: Option<PathBuf>,
    /// The memory of the guest, of which its kernel takes some 60 MiB.
    pub memory: ByteSize,
    /// Its processors.
    pub processors: u8,
    /// Whether programs of the guest find a proxy, whose connections are the host's to serve.
    pub way_out: bool,
    /// TCP ports of the guest that the host reaches on loopback. Nothing else goes in, and nothing out.
    pub ports: Vec<u16>,
}

/// What runs in a machine.
#[derive(Clone, PartialEq, Eq)]
pub struct App {
    /// The program, its environment, its user and its directory, as image and configuration say.
    pub process: Process,
    /// The guest's name for itself.
    pub hostname: String,
    /// LIMIT: what its files outside the volume may take of the guest's memory.
    pub scratch: ByteSize,
    /// Where the volume is in its file system.
    pub volume: Option<String>,
    /// Secrets that are files, in memory, which only its user reads: name and content.
    pub files: Vec<(String, Vec<u8>)>,
}

impl fmt::Debug for App {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("process", &self.process)
            .field("volume", &self.volume)
            .finish_non_exhaustive()
    }
}
