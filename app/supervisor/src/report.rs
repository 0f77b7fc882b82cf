//! What is said about an instance: reports with ids that follow from its placement, and the words
//! for its end.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use tabbify_api::runner::{ExitRecord, Failure};
use tabbify_types::event::EventError;
use tabbify_types::event::v1::{
    AppFailed, AppHealthy, AppIdled, AppStarted, AppStarting, AppStopped, AppWoken, FailureReason,
    InstanceDrained, InstanceRef,
};
use tabbify_types::{
    AppUla, Event, InstanceUla, MeshKey, NewEvent, SecretName, SecretVersion, Segment,
};

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
        /// The versions of the secrets that it got.
        secrets: BTreeMap<SecretName, SecretVersion>,
    },
    /// It answers.
    Healthy,
    /// It has nothing to do and may end until somebody wants it.
    Idled,
    /// It answers again.
    Woken {
        /// The WireGuard key that it has now.
        key: MeshKey,
        /// The versions of the secrets that it got this time.
        secrets: BTreeMap<SecretName, SecretVersion>,
    },
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
            Self::Idled => "idled",
            Self::Woken { .. } => "woken",
            Self::Drained { .. } => "drained",
            Self::Failed(_) => "failed",
            Self::Stopped => "stopped",
        }
    }

    /// The same among all that are said of one placement: it may be idle and woken many times.
    fn name_after(&self, placed: &Placed) -> String {
        let idles = placed.said.idles;
        match self {
            Self::Idled => format!("idled {}", idles + 1),
            Self::Woken { .. } => format!("woken {idles}"),
            _ => self.label().to_owned(),
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
            Self::Started { key, secrets } => Event::from(AppStarted {
                of,
                app_ula: AppUla::derive(app),
                instance_ula: InstanceUla::derive(app, instance),
                key: *key,
                secrets: secrets.clone(),
            }),
            Self::Healthy => Event::from(AppHealthy { of }),
            Self::Idled => Event::from(AppIdled { of }),
            Self::Woken { key, secrets } => Event::from(AppWoken {
                of,
                key: Some(*key),
                secrets: secrets.clone(),
            }),
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
        let id = placed.event.derived(&self.name_after(placed));
        let made = NewEvent::with_id(id, segment.clone(), app, &event)?;
        Ok(made.caused_by(placed.position))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting
            | Self::Started { .. }
            | Self::Healthy
            | Self::Idled
            | Self::Woken { .. }
            | Self::Stopped => f.write_str(self.label()),
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
    /// What the system said: to its parent, or to whoever held it, if the kernel tells them.
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

impl Status {
    /// As wait(2) encodes it; none of a process that was only stopped.
    pub(crate) fn of_wait(raw: i32) -> Option<Self> {
        let status = ExitStatus::from_raw(raw);
        let code = status.code().map(Self::Code);
        code.or_else(|| status.signal().map(Self::Signal))
    }
}

impl End {
    /// Whether it ended because it was told to, by its own last word.
    pub(crate) fn is_clean(&self) -> bool {
        let clean = |exit: &ExitRecord| exit.code == 0 && exit.failure.is_none();
        self.exit.as_ref().is_some_and(clean)
    }

    /// The end, as the reason why an instance does not run; `said` is what it said before.
    pub(crate) fn failure(&self, said: Option<&Failure>) -> Failure {
        let written = self.exit.as_ref().and_then(|exit| exit.failure.as_ref());
        if let Some(failure) = written.or(said) {
            return failure.clone();
        }
        let code = self.exit.as_ref().map(|exit| Status::Code(exit.code));
        let mut detail = match code.or(self.status) {
            Some(Status::Code(code)) => format!("its runner ended with exit code {code}"),
            Some(Status::Signal(signal)) => match signal_in_words(signal) {
                Some((name, words)) => format!("its runner was killed by {name}: {words}"),
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

/// What a signal that ends a process is called, and what it means to whoever runs the app.
const fn signal_in_words(signal: i32) -> Option<(&'static str, &'static str)> {
    Some(match signal {
        1 => ("SIGHUP", "somebody sent it"),
        2 => ("SIGINT", "somebody sent it"),
        3 => ("SIGQUIT", "somebody sent it"),
        4 => (
            "SIGILL",
            "it came to an instruction that this processor does not have",
        ),
        6 => (
            "SIGABRT",
            "it found itself in a state that must not be, and ended itself",
        ),
        7 => ("SIGBUS", "memory or a file behind it could not be read"),
        8 => ("SIGFPE", "it calculated what cannot be"),
        9 => (
            "SIGKILL",
            "by somebody, or by the kernel because the machine had no memory left (dmesg says which)",
        ),
        11 => ("SIGSEGV", "it used memory that is not its own"),
        13 => ("SIGPIPE", "nobody read what it wrote"),
        15 => ("SIGTERM", "somebody asked it to end"),
        24 => ("SIGXCPU", "it used up the processor time that it may have"),
        25 => ("SIGXFSZ", "it wrote a file longer than it may"),
        31 => ("SIGSYS", "it made a system call that it may not make"),
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
            "its runner was killed by SIGKILL: by somebody, or by the kernel because the machine had no \
             memory left (dmesg says which); its last words: starting",
        );
        for (signal, words) in [
            (
                11,
                "its runner was killed by SIGSEGV: it used memory that is not its own",
            ),
            (64, "its runner was killed by signal 64"),
        ] {
            let status = Some(Status::Signal(signal));
            check(
                &End {
                    status,
                    ..End::default()
                },
                words,
            );
        }
        let status = Status::of_wait(0x0700);
        check(
            &End {
                status,
                ..End::default()
            },
            "its runner ended with exit code 7",
        );
        assert_eq!(Status::of_wait(9), Some(Status::Signal(9)));
        assert_eq!(
            Status::of_wait(0x80 | 11),
            Some(Status::Signal(11)),
            "with a core"
        );
        assert_eq!(Status::of_wait(0x7F), None, "only stopped");
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
