//! Why there is no machine, or not any more, in words for the person whose app it is or whose host.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The result of what is asked of a machine.
pub type Result<T, E = VmError> = std::result::Result<T, E>;

/// What a machine could not do.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The file system of the host refused.
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
    /// A program of the host is not there.
    #[error("{program} is missing. Run: apt-get install {package}")]
    Program {
        /// The program.
        program: String,
        /// The package of Debian that has it.
        package: &'static str,
        /// What was found instead.
        #[source]
        source: io::Error,
    },
    /// The guest's kernel is not there.
    #[error("the kernel for guests is missing: {}. Run there: tabbify doctor", path.display())]
    Kernel {
        /// Where it should be.
        path: PathBuf,
    },
    /// The guest's kernel cannot do something that every guest needs.
    #[error("the kernel for guests has no {module}, neither built in nor as a module in {}", directory.display())]
    Module {
        /// The module.
        module: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The monitor refused what it was started with, or died of it.
    #[error("{monitor} does not start the machine: {said}")]
    Monitor {
        /// Its name.
        monitor: &'static str,
        /// The end of what it said.
        said: String,
    },
    /// The guest's kernel or init did not get so far.
    #[error("the machine does not boot: {why}")]
    Boot {
        /// The end of its console, or what was waited for.
        why: String,
    },
    /// The app could not be started in a guest that is up.
    #[error("the app does not start: {0}")]
    App(String),
    /// The machine is over.
    #[error("the machine has ended")]
    Over,
    /// Nobody in it listens where the host would reach them.
    #[error("it did not listen on :{port} in {within:?}; {elsewhere}. Listen on 0.0.0.0:$PORT")]
    NotListening {
        /// Where it was waited for.
        port: u16,
        /// How long.
        within: Duration,
        /// Where somebody listens instead, in words.
        elsewhere: String,
    },
    /// Its init does not answer.
    #[error("the machine does not answer")]
    Silent,
    /// A program beside the app could not be started.
    #[error("{0}")]
    Exec(String),
    /// An order that is longer than the guest takes.
    #[error("the command and its environment are over {limit} bytes")]
    TooLong {
        /// What it takes.
        limit: usize,
    },
}

impl VmError {
    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    /// Whether the app or its image is at fault, and not the host.
    #[must_use]
    pub fn is_of_the_app(&self) -> bool {
        matches!(
            self,
            Self::App(_) | Self::Exec(_) | Self::TooLong { .. } | Self::NotListening { .. }
        )
    }
}
