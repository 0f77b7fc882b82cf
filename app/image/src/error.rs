//! What is wrong with an image, in words for the person who built it.

use std::io;
use std::path::PathBuf;

/// The result of reading an image.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file system of this machine refused.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The archive is compressed as a whole.
    #[error("the archive is compressed with {with}. Decompress it first: {command}")]
    Compressed {
        /// The compression.
        with: &'static str,
        /// What undoes it.
        command: &'static str,
    },
    /// A tar or something else, but not an image.
    #[error("this is no image archive: {why}. Make one with: docker save -o image.tar NAME")]
    NotAnImage {
        /// What is missing or wrong.
        why: String,
    },
    /// The archive was cut off or changed.
    #[error("{part} is damaged: {why}. Save the image again")]
    Damaged {
        /// The manifest, the config, or which layer.
        part: String,
        /// What does not fit.
        why: String,
    },
    /// For another machine than ours.
    #[error(
        "the image is for {found}, and this machine runs {wanted}. Build it with --platform {wanted}"
    )]
    Architecture {
        /// Ours.
        wanted: String,
        /// The image's, or a list of them.
        found: String,
    },
    /// More than one image, and nothing to choose by.
    #[error("the archive holds {count} images. Save the one to run alone")]
    Several {
        /// How many.
        count: usize,
    },
    /// A form of image that we do not read.
    #[error("{what} is not supported")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// Beyond a limit of ours.
    #[error("the image is too large: {what} is over the limit of {limit}")]
    TooLarge {
        /// What is counted.
        what: String,
        /// How much of it there may be.
        limit: u64,
    },
    /// A layer has an entry that no layer should have.
    #[error("layer {layer} has an entry that is refused: {entry}: {why}")]
    Refused {
        /// Counted from 1, the lowest first.
        layer: usize,
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing says what to run.
    #[error("the image has no ENTRYPOINT and no CMD. Add one, or set [runtime] command")]
    NoCommand,
    /// `sqfstar` is not there.
    #[error(
        "sqfstar is missing: it makes the image's file system. Run: apt-get install squashfs-tools"
    )]
    NoSqfstar(#[source] io::Error),
    /// `sqfstar` did not take what we gave it.
    #[error("sqfstar failed ({status}): {said}")]
    Sqfstar {
        /// How it ended.
        status: String,
        /// The end of what it said.
        said: String,
    },
}

impl ImageError {
    /// A failure of this machine's file system.
    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    pub(crate) fn damaged(part: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Damaged {
            part: part.into(),
            why: why.into(),
        }
    }

    /// Whether the image is at fault, and not this machine.
    #[must_use]
    pub fn is_of_the_image(&self) -> bool {
        !matches!(
            self,
            Self::Io { .. } | Self::NoSqfstar(_) | Self::Sqfstar { .. }
        )
    }
}
