//! The runner through its public API: real components, built here from Rust source, over TCP; and
//! the real program in a directory of its own, over the mesh.

mod artifact;
mod control;
mod docker;
mod failures;
mod harness;
mod leased;
mod neighbors;
mod over_mesh;
mod platform;
mod process;
mod streams;
mod upstream;
mod wasm;
