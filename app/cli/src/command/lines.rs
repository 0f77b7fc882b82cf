//! NDJSON from the platform, a line at a time: what `logs` and `events` have in common.

use std::io::{BufRead as _, BufReader, Read};

use serde::de::DeserializeOwned;

use crate::error::{Code, Failure, Result};
use crate::server::Server;

/// Reads lines of at most `len_max` bytes.
pub(crate) struct Lines<'a, R> {
    lines: BufReader<R>,
    server: &'a Server,
    len_max: u64,
    /// Whether an end of the lines is an interruption.
    follow: bool,
}

/// Why there is no line.
pub(crate) enum Broken {
    /// The connection ended, and why; it can be gone on from there.
    Off(String),
    /// What came is not ours.
    Other(Failure),
}

impl<'a, R: Read> Lines<'a, R> {
    pub(crate) fn new(lines: R, server: &'a Server, len_max: u64, follow: bool) -> Self {
        let lines = BufReader::new(lines);
        Self {
            lines,
            server,
            len_max,
            follow,
        }
    }

    /// The next object; `None` at the end of what was not followed.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> std::result::Result<Option<T>, Broken> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let limited = self.lines.by_ref().take(self.len_max);
            match { limited }.read_until(b'\n', &mut bytes) {
                Err(error) => return Err(Broken::Off(error.to_string())),
                // What is followed has no end of its own.
                Ok(0) if self.follow => {
                    return Err(Broken::Off("the platform closed it".to_owned()));
                }
                Ok(0) => return Ok(None),
                Ok(_) => {}
            }
            let text = bytes.trim_ascii();
            if text.is_empty() {
                // An empty line keeps a quiet connection alive.
                continue;
            }
            return serde_json::from_slice(text).map(Some).map_err(|error| {
                if bytes.ends_with(b"\n") {
                    let server = self.server;
                    let what =
                        format!("{server} writes lines in a form that is not ours ({error}).");
                    Broken::Other(Failure::new(Code::BadAnswer, what))
                } else {
                    Broken::Off("in the middle of a line".to_owned())
                }
            });
        }
    }
}

/// [`Lines::next`] for callers that need nothing but the failure: what broke off, why, and the command
/// that goes on.
pub(crate) fn or_cut<T>(
    next: std::result::Result<Option<T>, Broken>,
    what: &str,
    again: impl FnOnce() -> String,
) -> Result<Option<T>> {
    next.map_err(|broken| match broken {
        Broken::Off(why) => Failure::new(Code::Interrupted, format!("{what} broke off ({why})."))
            .fix(format!("Go on with: {}", again())),
        Broken::Other(failure) => failure,
    })
}
