//! What is said about an instance: reports with ids that follow from its placement, and the words
//! for its end.

use std::fmt;

use tabbify_api::runner::{ExitRecord, Failure};
use tabbify_types::event::EventError;
use tabbify_types::event::v1::{
    AppFailed, AppHealthy, AppStarted, AppStarting, AppStopped, FailureReason, InstanceDrained,
    InstanceRef,
};
use tabbify_types::{AppUla, Event, InstanceUla, MeshKey, NewEvent, Segment};

use crate::state::Placed;

/// LIMIT: `detail` of a failure, in bytes.
const DETAIL_LEN_MAX: usize = 4 * 1024;
/// LIMIT: `log_tail` of a failure, in bytes.
pub(crate) const LOG_TAIL_LEN_MAX: usize = 8 * 1024;

/// Something to say about an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// The intent to spawn.
    Starting,
    /// It runs.
    Started {
        /// The WireGuard key that it made.
        key: MeshKey,
    },
    /// It answers.
    Healthy,
    /// It has finished what it had.
    Drained {
        /// Requests that ended well.
        finished: u64,
        /// Requests that were cut off.
        cut: u64,
    },
    /// It cannot run or died.
    Failed(Failure),
    /// It has ended because it was told to.
    Stopped,
}

impl Report {
    /// Names the report among those of one placement.
    const fn label(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Started { .. } => "started",
            Self::Healthy => "healthy",
            Self::Drained { .. } => "drained",
            Self::Failed(_) => "failed",
            Self::Stopped => "stopped",
        }
    }

    /// The event, with the id that every repetition of it has too. `log_tail` stands in a failure.
    ///
    /// # Errors
    /// [`EventError`] if it would be too long, which its limits exclude.
    pub(crate) fn event(
        &self,
        segment: &Segment,
        placed: &Placed,
        log_tail: &str,
    ) -> Result<NewEvent, EventError> {
        let (app, instance) = (placed.app.app, placed.app.instance);
        let of = InstanceRef { app, instance };
        let event = match self {
            Self::Starting => Event::from(AppStarting { of }),
            Self::Started { key } => Event::from(AppStarted {
                of,
                app_ula: AppUla::derive(app),
                instance_ula: InstanceUla::derive(app, instance),
                key: *key,
            }),
            Self::Healthy => Event::from(AppHealthy { of }),
            Self::Drained { finished, cut } => Event::from(InstanceDrained {
                of,
                finished: *finished,
                cut: *cut,
            }),
            Self::Failed(failure) => Event::from(AppFailed {
                of,
                reason: failure.reason,
                detail: head(&printable(&failure.detail), DETAIL_LEN_MAX).to_owned(),
                log_tail: tail(&printable(log_tail), LOG_TAIL_LEN_MAX).to_owned(),
            }),
            Self::Stopped => Event::from(AppStopped { of }),
        };
        let id = placed.event.derived(self.label());
        let made = NewEvent::with_id(id, segment.clone(), app, &event)?;
        Ok(made.caused_by(placed.position))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting | Self::Started { .. } | Self::Healthy | Self::Stopped => {
                f.write_str(self.label())
            }
            Self::Drained { finished, cut } => write!(f, "drained({finished} finished, {cut} cut)"),
            Self::Failed(Failure { reason, detail }) => write!(f, "failed({reason:?}: {detail})"),
        }
    }
}

/// What is known of a runner's end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct End {
    /// Its own last word.
    pub(crate) exit: Option<ExitRecord>,
    /// What the system said: only its parent learns it.
    pub(crate) status: Option<Status>,
    /// The last line of its own log.
    pub(crate) last_words: Option<String>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl End {
    /// The end, as the reason why an instance does not run; `said` is what it said before.
    pub(crate) fn failure(&self, said: Option<&Failure>) -> Failure {
        let written = self.exit.as_ref().and_then(|exit| exit.failure.as_ref());
        if let Some(failure) = written.or(said) {
            return failure.clone();
        }
        let code = self.exit.as_ref().map(|exit| Status::Code(exit.code));
        let mut detail = match code.or(self.status) {
            Some(Status::Code(code)) => format!("its runner ended with exit code {code}"),
            Some(Status::Signal(signal)) => match signal_name(signal) {
                Some(name) => format!("its runner was killed by {name}"),
                None => format!("its runner was killed by signal {signal}"),
            },
            None => "its runner ended without a word, as when it is killed".to_owned(),
        };
        if let (None, Some(words)) = (&self.exit, &self.last_words) {
            detail.push_str("; its last words: ");
            detail.push_str(words);
        }
        Failure {
            reason: FailureReason::Exited,
            detail,
        }
    }
}

const fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        2 => "SIGINT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return None,
    })
}

/// Control characters, which a terminal would obey and JSON writes as six bytes, become one sign.
fn printable(text: &str) -> String {
    let plain = |c: char| !c.is_control() || c == '\n' || c == '\t';
    text.chars()
        .map(|c| {
            if plain(c) {
                c
            } else {
                char::REPLACEMENT_CHARACTER
            }
        })
        .collect()
}

/// The first `len_max` bytes, at a character's bound.
fn head(text: &str, len_max: usize) -> &str {
    &text[..text.floor_char_boundary(len_max)]
}

/// The last `len_max` bytes, from the beginning of a line if one begins there.
pub(crate) fn tail(text: &str, len_max: usize) -> &str {
    if text.len() <= len_max {
        return text;
    }
    let cut = &text[text.ceil_char_boundary(text.len() - len_max)..];
    match cut.split_once('\n') {
        Some((_, rest)) if !rest.is_empty() => rest,
        _ => cut,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use tabbify_types::Timestamp;

    use super::*;

    fn check(end: &End, expected: &str) {
        let failure = end.failure(None);
        assert_eq!(
            (failure.reason, failure.detail.as_str()),
            (FailureReason::Exited, expected)
        );
    }

    #[test]
    fn ends_in_words() {
        let silent = End::default();
        check(
            &silent,
            "its runner ended without a word, as when it is killed",
        );
        let killed = End {
            status: Some(Status::Signal(9)),
            last_words: Some("starting".to_owned()),
            ..End::default()
        };
        check(
            &killed,
            "its runner was killed by SIGKILL; its last words: starting",
        );
        let left = End {
            exit: Some(ExitRecord {
                code: 3,
                failure: None,
                at: Timestamp::default(),
            }),
            status: Some(Status::Code(3)),
            last_words: Some("ignored".to_owned()),
        };
        check(&left, "its runner ended with exit code 3");
    }

    #[test]
    fn the_longest_failure_fits_an_event() {
        let mut placed = crate::state::tests::placed(1, 1);
        placed.position = tabbify_types::Position(7);
        let segment: Segment = "platform.hosts.box1.reports".parse().unwrap();
        for c in ['\0', '"', '\u{1b}', '\n', '語', '\u{7f}'] {
            let failure = Failure {
                reason: FailureReason::Exited,
                detail: c.to_string().repeat(100_000),
            };
            let tail = c.to_string().repeat(100_000);
            let event = Report::Failed(failure)
                .event(&segment, &placed, &tail)
                .unwrap();
            assert_eq!(event.cause, Some(placed.position));
        }
    }

    proptest! {
        #[test]
        fn cuts_are_short_and_at_the_right_end(text in any::<String>(), len_max in 0..64_usize) {
            let (first, last) = (head(&text, len_max), tail(&text, len_max));
            assert!(first.len() <= len_max && text.starts_with(first));
            assert!(last.len() <= len_max && text.ends_with(last));
        }
    }
}
