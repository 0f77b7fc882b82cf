//! An image in an archive.

use std::path::Path;

use crate::apply::apply;
use crate::archive::Parts;
use crate::config::Config;
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::flatten::Flat;
use crate::layer;
use crate::limits::Limits;
use crate::manifest::{self, Found, Platform};
use crate::tree::Tree;

/// An image whose manifest and config are verified, and whose layers are not read yet.
#[derive(Debug)]
pub struct Image {
    found: Found,
    limits: Limits,
}

impl Image {
    /// Finds the image for `platform` in the archive at `path`. The file must not change while the
    /// image is in use; if it does, a digest will not match.
    ///
    /// # Errors
    /// What is wrong with the archive, its manifest or its config.
    pub fn open(path: &Path, platform: &Platform, limits: Limits) -> Result<Self> {
        let found = manifest::find(&Parts::open(path)?, platform)?;
        if found.layers.len() > limits.layers {
            return Err(ImageError::TooLarge {
                what: "the number of layers".to_owned(),
                limit: limits.layers as u64,
            });
        }
        Ok(Self { found, limits })
    }

    /// How it wants to be run.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.found.config
    }

    /// Its id: the digest of its config, which has the digests of its layers in it.
    #[must_use]
    pub const fn id(&self) -> Digest {
        self.found.id
    }

    /// Verifies and merges its layers. Decompressed ones are spooled to files in `directory` that have
    /// no name and go with the answer.
    ///
    /// # Errors
    /// What is wrong with a layer; those of the file system of `directory`.
    pub fn flatten(&self, directory: &Path) -> Result<Flat> {
        let mut tree = Tree::new(&self.limits);
        let mut bytes_left = self.limits.bytes;
        for (at, found) in self.found.layers.iter().enumerate() {
            let number = at + 1;
            let tar = layer::spool(number, found, directory, &self.limits, &mut bytes_left)?;
            apply(&mut tree, number, &tar)?;
        }
        Ok(Flat::new(tree))
    }
}
