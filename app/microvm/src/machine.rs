//! What a machine is made of.

use std::path::PathBuf;

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
    /// Where what is made of these is kept, and what is known of the host.
    pub state: PathBuf,
}

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Acceleration {
    /// The processor if a guest is known to boot on it, else a program.
    #[default]
    Auto,
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// A program: an order of magnitude slower, and it runs everywhere.
    Tcg,
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
    /// TCP ports of the guest that the host reaches on loopback. Nothing else goes in, and nothing out.
    pub ports: Vec<u16>,
}

/// What runs in a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// The program, its environment, its user and its directory, as image and configuration say.
    pub process: Process,
    /// The guest's name for itself.
    pub hostname: String,
    /// LIMIT: what its files outside the volume may take of the guest's memory.
    pub scratch: ByteSize,
    /// Where the volume is in its file system.
    pub volume: Option<String>,
}
