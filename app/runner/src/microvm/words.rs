//! What the app's people are told of a machine that does not serve: the words that they know from containers, where
//! it is the same that happened.

use std::time::Duration;

use tabbify_api::runner::Failure;
use tabbify_container::{End, seconds};
use tabbify_image::ImageError;
use tabbify_microvm::order::Status;
use tabbify_microvm::{Ending, VmError};
use tabbify_process::chain;
use tabbify_types::ByteSize;
use tabbify_types::event::v1::FailureReason;

use crate::docker::words::{self, failure};

/// What a guest's kernel says when it has no memory left to go on with.
const DEADLOCKED: [&str; 2] = ["Out of memory", "deadlocked on memory"];

/// An end as engines count it: 128 and the signal's number for one that a signal ended.
pub(super) fn code(status: Status) -> i64 {
    match status {
        Status::Code(code) => i64::from(code),
        Status::Signal(signal) => 128 + i64::from(signal),
    }
}

/// An image that cannot be run, or not here.
pub(super) fn unreadable(error: &ImageError) -> Failure {
    let reason = match error.is_of_the_image() {
        true => FailureReason::Image,
        false => FailureReason::Runtime,
    };
    failure(reason, chain(error).to_string())
}

/// A machine that could not be had.
pub(super) fn failed(error: &VmError) -> Failure {
    let reason = match error.is_of_the_app() {
        true => FailureReason::Image,
        false => FailureReason::Runtime,
    };
    failure(reason, chain(error).to_string())
}

/// A machine that has ended by itself, which is never what an app is for.
pub(super) fn ended(ending: &Ending, memory: ByteSize, ran_for: Duration) -> Failure {
    let end = |code, out_of_memory| End {
        code,
        out_of_memory,
        ran_for,
    };
    match ending {
        Ending::Exited {
            status,
            out_of_memory,
        } => {
            let code = code(*status);
            // A process that was killed for memory matters if the app ended of it.
            words::ended(&end(code, *out_of_memory && code != 0), memory)
        }
        Ending::Failed(why) => failure(
            FailureReason::Image,
            format!("the app does not start: {why}"),
        ),
        Ending::Crashed { console } if DEADLOCKED.iter().any(|said| console.contains(said)) => {
            words::ended(&end(137, true), memory)
        }
        Ending::Crashed { console } => {
            let after = seconds(ran_for);
            let detail = match console.as_str() {
                "" => format!("its machine crashed, {after} after start"),
                said => format!("its machine crashed, {after} after start: {said}"),
            };
            failure(FailureReason::Exited, detail)
        }
        Ending::Killed => failure(
            FailureReason::Runtime,
            format!(
                "its machine was ended from outside, {} after start",
                seconds(ran_for)
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_understands_why() {
        let check = |ending: Ending, reason: FailureReason, expected: &str| {
            let told = ended(&ending, ByteSize::mib(64), Duration::from_millis(3200));
            assert_eq!((told.reason, told.detail.as_str()), (reason, expected));
        };
        let exited = |status, out_of_memory| Ending::Exited {
            status,
            out_of_memory,
        };
        let killed = "it was killed at 64MiB, 3 s after start. Set memory = \"128MiB\"";
        check(
            exited(Status::Signal(9), true),
            FailureReason::Memory,
            killed,
        );
        check(
            exited(Status::Code(0), true),
            FailureReason::Exited,
            "it ended with exit code 0, 3 s after start",
        );
        check(
            exited(Status::Signal(11), false),
            FailureReason::Exited,
            "it was ended by SIGSEGV, 3 s after start",
        );
        let crashed = |console: &str| Ending::Crashed {
            console: console.to_owned(),
        };
        check(
            crashed("Kernel panic - not syncing: System is deadlocked on memory"),
            FailureReason::Memory,
            killed,
        );
        check(
            crashed("Kernel panic - not syncing: sysrq triggered crash"),
            FailureReason::Exited,
            "its machine crashed, 3 s after start: Kernel panic - not syncing: sysrq triggered crash",
        );
        check(
            Ending::Killed,
            FailureReason::Runtime,
            "its machine was ended from outside, 3 s after start",
        );
    }
}
