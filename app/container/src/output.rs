//! What a container prints, from its first byte to its last, once: across connections to the engine, and
//! across its restarts.
//!
//! The engine keeps the output in files of its own and stamps each piece of it. A connection that breaks is
//! begun anew from the last stamp, and what was seen of that moment is passed over.

use std::time::Duration;

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::container::Container;
use crate::error::is_missing;

/// Pause before a connection is begun anew.
const PAUSE: Duration = Duration::from_millis(200);
/// LIMIT: how long the engine may be away before what it may still have is given up.
const AWAY_MAX: Duration = Duration::from_secs(120);

/// Which of a container's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How far a stream has been taken: the moment of the last piece, and how many pieces of that moment.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Timestamp,
    count: u64,
    /// Of those, how many this connection has shown again.
    again: u64,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            at: Timestamp::MIN,
            count: 0,
            again: 0,
        }
    }
}

impl Seen {
    /// Whether a piece of the moment `at` is new.
    fn take(&mut self, at: Timestamp) -> bool {
        if at < self.at {
            return false;
        }
        if at > self.at {
            *self = Self {
                at,
                count: 1,
                again: 1,
            };
            return true;
        }
        self.again += 1;
        if self.again <= self.count {
            return false;
        }
        self.count = self.again;
        true
    }
}

impl Container {
    /// Gives `take` all that it prints, in pieces of at most some 16 KiB, and goes on when `take` has: who is
    /// slow slows the reading, not the container, whose oldest output is then lost. Returns when it has ended
    /// and all is taken, or the engine has lost it.
    pub async fn follow<F>(&self, mut take: impl FnMut(Stream, Bytes) -> F)
    where
        F: Future<Output = ()>,
    {
        let mut seen = [Seen::default(), Seen::default()];
        let mut away_since: Option<Instant> = None;
        // An engine may end a connection that follows before the last piece: the one that counts begins
        // after the container's end.
        let mut is_last = false;
        loop {
            let whole = self.follow_once(&mut seen, &mut take).await;
            if whole && is_last {
                return;
            }
            match self.is_running().await {
                Ok(runs) => (is_last, away_since) = (!runs, None),
                Err(error) if is_missing(&error) => return,
                Err(error) => {
                    is_last = false;
                    let since = *away_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > AWAY_MAX && !self.lives() {
                        tracing::warn!(%error, id = self.id, "the rest of a container's output is lost");
                        return;
                    }
                }
            }
            if !(whole && is_last) {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// One connection; whether it came to the output's end.
    async fn follow_once<F>(
        &self,
        seen: &mut [Seen; 2],
        take: &mut impl FnMut(Stream, Bytes) -> F,
    ) -> bool
    where
        F: Future<Output = ()>,
    {
        let since = seen
            .iter()
            .map(|seen| seen.at)
            .min()
            .unwrap_or(Timestamp::MIN);
        let options = LogsOptionsBuilder::default()
            .follow(true)
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .since(i32::try_from(since.as_second().max(0)).unwrap_or(0))
            .build();
        for seen in seen.iter_mut() {
            seen.again = 0;
        }
        let mut pieces = std::pin::pin!(self.engine.docker.logs(&self.id, Some(options)));
        while let Some(piece) = pieces.next().await {
            let (stream, piece) = match piece {
                Ok(LogOutput::StdErr { message }) => (Stream::Stderr, message),
                Ok(LogOutput::StdOut { message } | LogOutput::Console { message }) => {
                    (Stream::Stdout, message)
                }
                Ok(LogOutput::StdIn { .. }) => continue,
                Err(error) => {
                    tracing::debug!(%error, id = self.id, "following a container's output broke off");
                    return false;
                }
            };
            let Some((at, text)) = stamped(&piece) else {
                continue;
            };
            let of = match stream {
                Stream::Stdout => &mut seen[0],
                Stream::Stderr => &mut seen[1],
            };
            if of.take(at) {
                take(stream, text).await;
            }
        }
        true
    }
}

/// A piece without the moment that the engine puts before it.
fn stamped(piece: &Bytes) -> Option<(Timestamp, Bytes)> {
    let end = piece.iter().take(64).position(|byte| *byte == b' ')?;
    let at = std::str::from_utf8(&piece[..end]).ok()?.parse().ok()?;
    Some((at, piece.slice(end + 1..)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_piece_has_its_moment_before_it() {
        let piece = Bytes::from_static(b"2026-11-23T04:50:00.123456789Z a b\n");
        let (at, text) = stamped(&piece).unwrap();
        assert_eq!(
            (at.subsec_nanosecond(), &text[..]),
            (123_456_789, &b"a b\n"[..])
        );
        for bad in ["", "no stamp", "2026-11-23T04:50:00Z"] {
            assert!(
                stamped(&Bytes::from_static(bad.as_bytes())).is_none(),
                "{bad}"
            );
        }
    }

    proptest! {
        /// However often the connection breaks, each piece is taken once and in order.
        #[test]
        fn nothing_twice_and_nothing_lost(
            gaps in proptest::collection::vec(0_i64..3, 1..40),
            breaks in proptest::collection::vec(0_usize..40, 0..6),
        ) {
            let mut at = 0;
            let pieces: Vec<Timestamp> = gaps.iter().map(|gap| {
                at += gap * 400_000_000;
                Timestamp::from_nanosecond(i128::from(at)).unwrap()
            }).collect();
            let mut seen = Seen::default();
            let mut taken = Vec::new();
            let mut ends = breaks;
            ends.sort_unstable();
            ends.push(pieces.len());
            for end in ends {
                seen.again = 0;
                let since = seen.at.as_second();
                for (number, at) in pieces.iter().enumerate().take(end) {
                    if at.as_second() >= since && seen.take(*at) {
                        taken.push(number);
                    }
                }
            }
            prop_assert_eq!(taken, (0..pieces.len()).collect::<Vec<_>>());
        }

        #[test]
        fn any_piece_can_be_looked_at(piece in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = stamped(&piece.into());
        }
    }
}
