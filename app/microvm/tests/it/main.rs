//! Machines of QEMU with a real kernel, our init, and images made here.
//!
//! They run in software (TCG): what a nested KVM does is no property of ours.

mod app;
mod bad;
mod host;
mod support;
