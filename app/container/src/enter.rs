//! Secrets of a container: brought to its first process through a pipe, so that they are in memory alone. An
//! engine keeps the configuration of a container on disk, shows it to whoever asks, and has none of them in it.
//!
//! ```text
//! Enter ──attach──▶ engine ──pipe──▶ `tabbify-guest-init enter …` ─▶ variables, /run/secrets ─▶ the program
//! ```

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{Mount, MountType};
use bollard::query_parameters::AttachContainerOptionsBuilder;
use tabbify_guest_init::enter::{self, Item, OrderError};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

use crate::{Engine, Error};

/// Where the program that brings secrets is in the container.
const PROGRAM: &str = "/.tabbify-enter";
/// LIMIT: how long it may take to read what it is brought.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// LIMIT: secrets as files, in bytes; they count as the app's memory, too.
const FILES_LEN_MAX: u64 = 2 * 1024 * 1024;

/// What a container gets beside what its engine knows of it.
#[derive(Clone)]
pub struct Enter {
    program: PathBuf,
    all: Arc<Zeroizing<Vec<u8>>>,
    variables: Arc<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for Enter {
    /// Without any value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enter")
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

/// Why secrets cannot be brought.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The program is not there.
    #[error("{0} is missing, which brings secrets into containers. It comes with tabbify")]
    Missing(PathBuf),
    /// It would need libraries of the image.
    #[error(
        "{0} is not linked statically, and images have no libraries for it. Put the one of a release there"
    )]
    Dynamic(PathBuf),
    /// They are too large together.
    #[error("its secrets are too large")]
    TooLarge(#[source] OrderError),
}

impl Enter {
    /// Variables and files, brought by `program`: `tabbify-guest-init`.
    ///
    /// # Errors
    /// [`EnterError`].
    pub fn new<'a>(
        program: &Path,
        variables: impl Iterator<Item = (&'a str, &'a str)>,
        files: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, EnterError> {
        match is_static(program) {
            Ok(true) => {}
            Ok(false) => return Err(EnterError::Dynamic(program.to_owned())),
            Err(_) => return Err(EnterError::Missing(program.to_owned())),
        }
        let variables: Vec<Item<'a>> = variables
            .map(|(name, value)| Item::Variable(name, value))
            .collect();
        let files = files.map(|(name, content)| Item::File(name, content));
        let all: Vec<Item<'a>> = variables.iter().copied().chain(files).collect();
        let order = |items: &[Item<'_>]| {
            let order = enter::encode(items).map_err(EnterError::TooLarge)?;
            Ok(Arc::new(Zeroizing::new(order)))
        };
        Ok(Self {
            program: program.to_owned(),
            all: order(&all)?,
            variables: order(&variables)?,
        })
    }

    /// Where a container has the program.
    pub(crate) fn mount(&self) -> Mount {
        Mount {
            target: Some(PROGRAM.to_owned()),
            source: Some(self.program.display().to_string()),
            typ: Some(MountType::BIND),
            read_only: Some(true),
            ..Mount::default()
        }
    }

    /// The place for files, and how it is mounted: the image's user writes there once, and nobody else is in
    /// the container.
    pub(crate) fn files() -> (String, String) {
        let options = format!("rw,nosuid,nodev,noexec,mode=1777,size={FILES_LEN_MAX}");
        (enter::SECRETS_DIRECTORY.to_owned(), options)
    }

    /// What is run instead of `command`.
    pub(crate) fn before(command: &[String]) -> Vec<String> {
        let ours = [PROGRAM, enter::WORD].map(str::to_owned);
        ours.into_iter().chain(command.iter().cloned()).collect()
    }

    /// Gives the first process of a container that is about to start all of it.
    pub(crate) fn whole(&self) -> &[u8] {
        &self.all
    }

    /// Gives a further command what is not there already.
    pub(crate) fn further(&self) -> &[u8] {
        &self.variables
    }
}

/// The pipe to a container's first process, made before that is started.
pub(crate) type Pipe = Pin<Box<dyn AsyncWrite + Send>>;

impl Engine {
    pub(crate) async fn pipe_to(&self, container: &str) -> Result<Pipe, Error> {
        let options = AttachContainerOptionsBuilder::default()
            .stdin(true)
            .stream(true)
            .build();
        let attached = self.docker.attach_container(container, Some(options));
        let attached = tokio::time::timeout(READ_WITHIN, attached).await;
        let attached = attached.map_err(|_| Error::Late("attaching to a container"))?;
        let attached = attached.map_err(Error::call("attaching to a container"))?;
        Ok(attached.input)
    }
}

/// Writes `order`, whole. A process that has ended without it says so by itself, in the app's log.
pub(crate) async fn bring(mut pipe: Pipe, order: &[u8]) -> Result<(), Error> {
    let written = async {
        pipe.write_all(order).await?;
        pipe.shutdown().await
    };
    match tokio::time::timeout(READ_WITHIN, written).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a container takes no secrets");
            Ok(())
        }
        Err(_) => Err(Error::Late("bringing secrets into a container")),
    }
}

/// Whether a program is an ELF that asks for no interpreter.
fn is_static(path: &Path) -> io::Result<bool> {
    /// LIMIT: what is read of it; the headers of a program are at its beginning.
    const HEAD_LEN: u64 = 64 * 1024;
    const PT_INTERP: u32 = 3;
    let mut head = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(HEAD_LEN).read_to_end(&mut head)?;
    let bytes = |at: usize, len: usize| at.checked_add(len).and_then(|end| head.get(at..end));
    let short = |at: usize| Some(u16::from_le_bytes(bytes(at, 2)?.try_into().ok()?));
    let is_interpreter = |at: usize| {
        let kind = bytes(at, 4).and_then(|it| it.try_into().ok());
        kind.map(u32::from_le_bytes) == Some(PT_INTERP)
    };
    let table = || {
        let begins = u64::from_le_bytes(bytes(32, 8)?.try_into().ok()?);
        let begins = usize::try_from(begins).ok()?;
        Some((begins, usize::from(short(54)?), usize::from(short(56)?)))
    };
    // 64 bits, little end first: what we are built for.
    let Some((begins, size, count)) = table().filter(|_| head.starts_with(b"\x7fELF\x02\x01"))
    else {
        return Ok(false);
    };
    let all = (0..count).map(|n| begins.saturating_add(n * size));
    Ok(!all.into_iter().any(is_interpreter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_libraries_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        let cut = dir.path().join("cut");
        std::fs::write(&cut, b"\x7fELF\x02\x01").unwrap();
        let dynamic = std::env::current_exe().unwrap();
        for path in [&script, &cut, &dynamic] {
            assert!(!is_static(path).unwrap(), "{}", path.display());
            let refused = Enter::new(path, [].into_iter(), [].into_iter());
            assert!(matches!(refused, Err(EnterError::Dynamic(_))));
        }
        let absent = dir.path().join("absent");
        let refused = Enter::new(&absent, [].into_iter(), [].into_iter());
        assert!(matches!(refused, Err(EnterError::Missing(_))));
    }
}
