//! `tenant_*.sandboxes`: short-lived runs of code.

use serde::{Deserialize, Serialize};

use super::{Home, RuntimeKind, home};
use crate::{ByteSize, Digest, HostName, SandboxId};

const ASKED: Home = home("tenant_*.sandboxes", "node");
const RUN: Home = home("tenant_*.sandboxes", "sandbox-supervisor");

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLimits {
    /// The most memory.
    pub memory: ByteSize,
    /// The most output files, in bytes together.
    pub files: ByteSize,
    /// From its start to its end, in milliseconds.
    pub timeout_ms: u64,
}

/// Which output of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxEnd {
    /// Its program ended by itself.
    Exited,
    /// Its time was over.
    TimedOut,
    /// It used more memory than it may.
    OutOfMemory,
    /// Somebody stopped it.
    Cancelled,
    /// It never ran.
    NotStarted,
}

events! {
    /// Code is to run: the intent.
    SandboxSpawnRequested = "sandbox_spawn_requested" at [ASKED] key "the sandbox" {
        sandbox: SandboxId => "The sandbox.",
        runtime: RuntimeKind => "What runs it.",
        image: String => "The image or component, such as `python:3.13`.",
        command: Vec<String> => "The program and its arguments, at most 16 KiB together.",
        #[serde(skip_serializing_if = "Option::is_none")] files: Option<Digest> =>
            "The archive of the files that it starts with.",
        limits: SandboxLimits => "What it may use.",
    }

    /// Code runs.
    SandboxStarted = "sandbox_started" at [RUN] key "the sandbox" {
        sandbox: SandboxId => "The sandbox.",
        host: HostName => "The machine.",
    }

    /// Code has written something. A sandbox has at most 1 MiB of these; the rest of its output is
    /// where its `sandbox_exited` says.
    SandboxLog = "sandbox_log" at [RUN] key "the sandbox" {
        sandbox: SandboxId => "The sandbox.",
        stream: Stream => "Which output.",
        offset: u64 => "Where the text stands in that output, in bytes from 0.",
        text: String => "At most 16 KiB; what is not UTF-8 is replaced.",
    }

    /// Code has ended.
    SandboxExited = "sandbox_exited" at [RUN] key "the sandbox" {
        sandbox: SandboxId => "The sandbox.",
        end: SandboxEnd => "Why.",
        #[serde(skip_serializing_if = "Option::is_none")] status: Option<i32> =>
            "The exit status of its program, if it ended by itself.",
        #[serde(skip_serializing_if = "Option::is_none")] files: Option<Digest> =>
            "The archive of the files that it left.",
        #[serde(skip_serializing_if = "Option::is_none")] output: Option<Digest> =>
            "All of its output, if that is more than its `sandbox_log` events hold.",
    }
}
