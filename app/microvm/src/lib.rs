//! An OCI image in a virtual machine of its own.
//!
//! Plane: app. Spawns, on the caller's [`Tasks`](tabbify_process::Tasks), one task that watches a
//! machine, one that talks to its guest, two for its way out and two for each connection on it, two that read what it and its monitor print; and one thread,
//! since a child that must not outlive us is bound to the thread that started it. Owns bounded
//! channels: orders to the guest, output to the caller.
//!
//! ```text
//! Vm ── control socket ── virtio console ── tabbify-guest-init ── the app
//!  │                                                                 ▲
//!  └─ Vmm (QEMU: process, drives, forwarded ports) ── virtio net ────┘
//! ```
//! INVARIANT: the guest is hostile, its kernel included. It can end its own machine and nothing else;
//! what it says is bounded before it is believed. When a machine is over, its process, its sockets and
//! its directory are gone.

mod bound;
mod cpio;
mod doctor;
mod error;
mod guest;
mod initramfs;
mod kvm;
mod machine;
mod modules;
mod monitor;
mod qemu;
mod reap;
mod tail;
mod vm;
mod vmm;
mod volume;
mod way;

pub use doctor::{Finding, doctor};
pub use error::{Result, VmError};
pub use guest::{Chunk, EXEC_QUEUE, Exec, OUTPUT_QUEUE, Source};
pub use machine::{App, Assets, Machine};
pub use qemu::Qemu;
pub use reap::reap;
pub use tabbify_api::runner::Acceleration;
pub use tabbify_guest_init::order;
pub use tabbify_guest_init::way::PROXY_PORT;
pub use tabbify_guest_init::{signal_name, signal_number};
pub use vm::{Ending, Vm};
pub use vmm::{Launched, Vmm};
pub use volume::volume;
