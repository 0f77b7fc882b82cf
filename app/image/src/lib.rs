//! OCI images from an archive: an OCI layout or what `docker save` writes, as one tar.
//!
//! Plane: app. A library without tasks, channels or engines: the microVM runtime uses it, and whoever
//! else needs to know what is in an image. All of it blocks, so that async callers put it on a thread
//! of their own.
//!
//! ```text
//! archive ─▶ [`Image::open`]: manifest of the platform, config ─▶ [`Image::flatten`]: layers verified,
//! spooled, merged into a tree of entries ─▶ [`Flat::write_to`]: one sorted tar ─▶ sqfstar ─▶ [`Cache`]
//! ```
//! INVARIANT: an archive is hostile. Nothing in it names a path of this machine: entries live in a
//! tree in memory whose files are ranges of spooled layers, and nothing is ever unpacked.

mod apply;
mod archive;
mod cache;
mod config;
mod digest;
mod error;
mod flatten;
mod image;
mod layer;
mod limits;
mod manifest;
mod slice;
mod squashfs;
mod tarball;
mod tree;

#[cfg(test)]
mod tests;

pub use cache::{Cache, Root};
pub use config::{Config, DEFAULT_PATH};
pub use digest::Digest;
pub use error::{ImageError, Result};
pub use flatten::Flat;
pub use image::Image;
pub use limits::Limits;
pub use manifest::Platform;
