//! `tenant_*.builds`: from source to an artifact.

use serde::{Deserialize, Serialize};

use super::{Home, ORDER, REPORT, home};
use crate::{AppId, BuildId, Digest, HostName};

const ASKED: Home = home("tenant_*.builds", "node");
const FACT: Home = home("tenant_*.builds", "coordinator");

/// Where source comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Source {
    /// An uploaded archive.
    Upload {
        /// Its digest: its address in the object store.
        archive: Digest,
    },
    /// A commit of a repository.
    Git {
        /// The repository's URL, without credentials.
        repository: String,
        /// The commit, 40 or 64 hex digits.
        commit: String,
    },
}

/// How far a build came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildStage {
    /// Getting the source.
    Fetch,
    /// Finding out how to build it.
    Detect,
    /// Running its build.
    Build,
    /// Storing what it made.
    Store,
}

/// Whose turn it is after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The app's source: its developer's.
    User,
    /// The platform: its operator's.
    Platform,
}

events! {
    /// Source is to become an artifact, on the machine that has the copy.
    BuildRequested = "build_requested" at [ASKED, ORDER] key "the build" {
        build: BuildId => "The build.",
        app: AppId => "The app.",
        source: Source => "What to build.",
    }

    /// A build is about to run: the intent.
    BuildStarted = "build_started" at [REPORT, FACT] key "the build" {
        build: BuildId => "The build.",
        host: HostName => "The machine.",
    }

    /// A build has made an artifact.
    BuildSucceeded = "build_succeeded" at [REPORT, FACT] key "the build" {
        build: BuildId => "The build.",
        artifact: Digest => "Digest of what it made.",
        #[serde(skip_serializing_if = "Option::is_none")] commit: Option<String> =>
            "The commit that was built, if the source has one.",
    }

    /// A build has made nothing.
    BuildFailed = "build_failed" at [REPORT, FACT] key "the build" {
        build: BuildId => "The build.",
        stage: BuildStage => "How far it came.",
        fault: Fault => "Whose turn it is.",
        detail: String => "Why, for people: what happened and what to do. At most 4 KiB.",
        #[serde(default)] log_tail: String => "The last lines of its output, at most 8 KiB.",
    }
}
