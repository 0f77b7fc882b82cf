//! How much of an image we take.

/// LIMIT: what an image may hold. The defaults are for images of apps, not of operating systems with
/// everything in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// LIMIT: layers. The engines that make images stop at 127.
    pub layers: usize,
    /// LIMIT: entries of all layers together, with directories that are only implied.
    pub entries: usize,
    /// LIMIT: bytes of all layers together, decompressed.
    pub bytes: u64,
    /// LIMIT: bytes of all names, link targets and extended attributes, which are held in memory.
    pub name_bytes: usize,
    /// LIMIT: how many times its compressed length a layer may have beyond its first
    /// [`RATIO_FREE`](Self::RATIO_FREE) bytes. File systems of programs compress 2 to 5 times.
    pub ratio: u64,
}

impl Limits {
    /// Bytes of a layer that are not held against its ratio: a small layer of zeros is harmless.
    pub const RATIO_FREE: u64 = 64 << 20;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 127,
            entries: 1_000_000,
            bytes: 8 << 30,
            name_bytes: 256 << 20,
            ratio: 200,
        }
    }
}

/// LIMIT: a path in an image, in bytes; `PATH_MAX` of Linux.
pub(crate) const PATH_LEN_MAX: usize = 4096;
/// LIMIT: one name in a path, in bytes; `NAME_MAX` of Linux.
pub(crate) const NAME_LEN_MAX: usize = 255;
/// LIMIT: names in a path.
pub(crate) const DEPTH_MAX: usize = 256;
/// LIMIT: symbolic links that are followed for one name; that of Linux.
pub(crate) const HOPS_MAX: usize = 40;
/// LIMIT: one manifest, index or config, in bytes; that of the distribution specification.
pub(crate) const DOCUMENT_LEN_MAX: u64 = 4 << 20;
/// LIMIT: extended headers of one entry, in bytes: a path, a link and its extended attributes.
pub(crate) const EXTENSION_LEN_MAX: u64 = 256 << 10;
/// LIMIT: entries of the archive itself: a few for each layer.
pub(crate) const PARTS_MAX: usize = 4096;
