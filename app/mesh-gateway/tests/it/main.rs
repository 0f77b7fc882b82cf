//! The gateway between real endpoints of the mesh: devices on one side, apps on the other.

mod limits;
mod net;
mod people;
mod policy;
mod who;
