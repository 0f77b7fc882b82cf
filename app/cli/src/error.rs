//! What tcli says when it cannot do what it was asked: what and why, what next, whose fault.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use tabbify_api::apps::Operation;
use tabbify_api::error::ErrorCode;
use tabbify_types::event::v1::FailureReason;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what it was asked.
    Fine,
    /// The app, or its build, is at fault.
    App,
    /// The command, the files or the credentials are at fault.
    Usage,
    /// The platform, or the way to it, is at fault.
    Platform,
    /// A person must approve first.
    Approval,
    /// A command in an app ended so: `exec` ends as it did.
    Command(u8),
}

impl Exit {
    /// The program's exit code.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::App => 1,
            Self::Usage => 2,
            Self::Platform => 3,
            Self::Approval => 4,
            Self::Command(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $exit:ident;)*) => {
        /// Failures that tcli finds by itself, for programs. The platform's own codes are
        /// [`ErrorCode`]'s, and those of a failed deploy [`FailureReason`]'s.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            #[cfg(test)]
            const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            const fn exit(self) -> Exit {
                match self { $(Self::$name => Exit::$exit,)* }
            }
        }
    };
}

codes! {
    /// The command line is not one of ours.
    Usage = "usage", Usage;
    /// A program that it takes is not on this machine.
    NoProgram = "no_program", Usage;
    /// There is no manifest in the folder.
    NoManifest = "no_manifest", Usage;
    /// There is one already.
    ManifestExists = "manifest_exists", Usage;
    /// Nothing in the folder looks like an app.
    NothingFound = "nothing_found", Usage;
    /// The manifest has mistakes.
    InvalidManifest = "invalid_manifest", Usage;
    /// The manifest asks for what is not built yet.
    NotSupportedYet = "not_supported_yet", Usage;
    /// The lock file cannot be read.
    InvalidLock = "invalid_lock", Usage;
    /// The lock file is of another app.
    LockMismatch = "lock_mismatch", Usage;
    /// The name belongs to an app that this folder has no lock of.
    NameTaken = "name_taken", Usage;
    /// The tenant has no secret that the app names.
    SecretMissing = "secret_missing", Usage;
    /// What was given is no value of a secret.
    NoValue = "no_value", Usage;
    /// The platform has no such app.
    UnknownApp = "unknown_app", Usage;
    /// A file of the user cannot be read or written.
    File = "file", Usage;
    /// The contexts file or a key file cannot be used.
    Credentials = "credentials", Usage;
    /// No credentials, or ones that the platform refuses.
    NotSignedIn = "not_signed_in", Usage;
    /// The build command failed.
    BuildFailed = "build_failed", App;
    /// The manifest names a file that is not there after the build.
    NoComponent = "no_component", App;
    /// The file is not a WebAssembly component.
    NotAComponent = "not_a_component", App;
    /// The manifest names the file of an image that is not there.
    NoImage = "no_image", App;
    /// The file is not that of an image.
    NotAnImage = "not_an_image", App;
    /// The deploy ended without success and without a fault of the platform.
    NotDeployed = "not_deployed", App;
    /// Nothing answers at the server's address.
    Unreachable = "unreachable", Platform;
    /// The connection was cut, and the attempts are used up.
    Interrupted = "interrupted", Platform;
    /// Something answers that does not speak our contract.
    BadAnswer = "bad_answer", Platform;
    /// The deploy did not come to an end in time.
    StillRunning = "still_running", Platform;
    /// A command in an app was not run, or not to its end.
    CommandFailed = "command_failed", App;
    /// A port of this machine cannot be had.
    Port = "port", Usage;
    /// Whoever read our output has gone; nothing is said about it.
    OutputClosed = "output_closed", Fine;
}

/// Why the program ends without having done what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// Stable, for programs.
    pub(crate) code: String,
    /// What happened and why, for people; may have several lines.
    pub(crate) what: String,
    /// What to do next.
    pub(crate) fix: Option<String>,
    /// The deploy that it is about.
    pub(crate) operation: Option<Box<Operation>>,
}

/// What most of this program answers with.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn new(code: Code, what: impl Into<String>) -> Self {
        Self {
            exit: code.exit(),
            code: code.as_str().to_owned(),
            what: what.into(),
            fix: None,
            operation: None,
        }
    }

    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// A file of the user that cannot be read or written.
    pub(crate) fn file(action: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::new(
            Code::File,
            format!("Cannot {action} {}: {error}.", path.display()),
        )
    }

    /// Whether it is this one.
    pub(crate) fn is(&self, code: ErrorCode) -> bool {
        self.code == code.as_str()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.fix {
            // A fix that follows a listing stands on its own line, else on the same.
            Some(fix) if self.what.contains('\n') => write!(f, "\n{fix}"),
            Some(fix) => write!(f, " {fix}"),
            None => Ok(()),
        }
    }
}

/// Whose fault a refusal of the platform is.
pub(crate) const fn exit_of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::BadUuid
        | ErrorCode::TokenMissing
        | ErrorCode::TokenInvalid
        | ErrorCode::TokenExpired
        | ErrorCode::Forbidden
        | ErrorCode::UnknownApp
        | ErrorCode::NameTaken
        | ErrorCode::AppMismatch
        | ErrorCode::VersionConflict
        | ErrorCode::TooLarge
        | ErrorCode::InvalidManifest
        | ErrorCode::NotSupportedYet
        | ErrorCode::UnknownConsumer
        | ErrorCode::NotParked
        | ErrorCode::SecretMissing
        | ErrorCode::SecretLimit
        | ErrorCode::IdConflict
        | ErrorCode::ConsumerExists
        | ErrorCode::ConsumerLimit
        | ErrorCode::NotDelivered
        | ErrorCode::ParkedFull
        | ErrorCode::BeyondHead
        | ErrorCode::GlobInAppend
        | ErrorCode::ExpectAhead
        | ErrorCode::EventTooLarge
        | ErrorCode::BatchTooLarge
        | ErrorCode::UnknownSegment
        | ErrorCode::TooSlow
        | ErrorCode::InvalidBatch => Exit::Usage,
        ErrorCode::AppTrapped
        | ErrorCode::AppMemory
        | ErrorCode::AppNoResponse
        | ErrorCode::AppCpu
        | ErrorCode::AppTimeout => Exit::App,
        ErrorCode::BadRequest
        | ErrorCode::BadJson
        | ErrorCode::Behind
        | ErrorCode::ProjectionStopped
        | ErrorCode::UnknownVersion
        | ErrorCode::AppendRate
        | ErrorCode::BadFraming
        | ErrorCode::NotFound
        | ErrorCode::MethodNotAllowed
        | ErrorCode::AddressTaken
        | ErrorCode::Conflict
        | ErrorCode::DigestMismatch
        | ErrorCode::RateLimited
        | ErrorCode::HeadTooLarge
        | ErrorCode::Internal
        | ErrorCode::NoLease
        | ErrorCode::LeaseFenced
        | ErrorCode::AppUnreachable
        | ErrorCode::Unavailable
        | ErrorCode::LogDamaged
        | ErrorCode::LogStored
        | ErrorCode::LogNoSpace => Exit::Platform,
    }
}

/// Whose fault a failed deploy is, by the code of its error.
pub(crate) fn exit_of_deploy(code: &str) -> Exit {
    let reason = serde_json::from_value(serde_json::Value::from(code));
    match reason {
        Ok(
            FailureReason::NotAComponent
            | FailureReason::WrongWorld
            | FailureReason::Unhealthy
            | FailureReason::Exited
            | FailureReason::Image
            | FailureReason::Secret
            | FailureReason::Volume
            | FailureReason::Memory,
        ) => Exit::App,
        Ok(FailureReason::Artifact | FailureReason::Spawn | FailureReason::Runtime) => {
            Exit::Platform
        }
        Err(_) => ErrorCode::from_code(code).map_or(Exit::Platform, exit_of),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document is the promise to programs: it lists every code and its exit.
    #[test]
    fn every_code_is_documented() {
        let document = include_str!("../../../docs/operating/tcli-json.md");
        for code in Code::ALL {
            if code.exit() != Exit::Fine {
                let row = format!("| `{}` | {} |", code.as_str(), code.exit().code());
                assert!(document.contains(&row), "tcli-json.md lacks the row {row}");
            }
        }
    }

    #[test]
    fn deploy_faults() {
        let check = |code: &str, exit: Exit| assert_eq!(exit_of_deploy(code), exit, "{code}");
        check("not_a_component", Exit::App);
        check("wrong_world", Exit::App);
        check("unhealthy", Exit::App);
        check("exited", Exit::App);
        check("spawn", Exit::Platform);
        check("artifact", Exit::Platform);
        check("app_memory", Exit::App);
        check("internal", Exit::Platform);
        check("something_new", Exit::Platform);
    }
}
