//! The runner through its public API: real components, built here from Rust source, over TCP; and
//! the real program in a directory of its own, over the mesh.

mod artifact;
mod conformance;
mod control;
mod disk;
mod docker;
mod examples;
mod failures;
mod harness;
mod leased;
mod neighbors;
mod outside;
mod over_mesh;
mod platform;
mod process;
mod streams;
mod upstream;
mod volume;
mod wasm;
