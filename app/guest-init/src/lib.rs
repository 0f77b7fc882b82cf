//! Process 1 of a microVM. The program is static and small; what it is made of is this library, whose
//! parts without privilege are tested on the host, and whose [`wire`] and [`order`] both sides share.
//!
//! Plane: app, inside the guest. One thread, one loop over [`poll`](rustix::event::poll), and for each
//! connection of the app to the outside two threads ([`way`]); owns no channel but those to the host. It trusts the host and nobody in the guest.
//!
//! ```text
//! kernel ─▶ mount /proc /sys /dev ─▶ modules ─▶ channel ─▶ BOOTED ... START ─▶ root, network, clock,
//! entropy ─▶ app ─▶ loop: output, exec, stop, reaping ─▶ ENDED ─▶ reset, which ends the machine
//! ```
//! The same program is the first process of a container that gets secrets ([`enter`]).
//!
//! INVARIANT: whatever fails is told on the channel if there is one, and on the console; then the
//! machine ends. A host that goes away ends it as well.

pub mod enter;
pub mod order;
pub mod way;
pub mod wire;

mod account;
mod boot;
mod channel;
mod child;
mod console;
mod listeners;
mod network;
mod process;
mod root;
mod serve;
mod signal;

pub use boot::run;
pub use signal::{signal_name, signal_number};
