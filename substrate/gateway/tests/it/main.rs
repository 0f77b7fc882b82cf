//! The vault on a real log, a real disk and real sockets.

mod crash;
mod hostile;
mod shred;
mod silence;
mod support;
mod who;
