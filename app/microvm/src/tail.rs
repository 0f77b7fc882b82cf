//! The end of what somebody prints who may print for ever.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::sync::CancellationToken;

/// LIMIT: bytes that are kept.
const LEN_MAX: usize = 8 << 10;

/// The last of it; clones are of the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    kept: Arc<Mutex<VecDeque<u8>>>,
    /// Cancelled when nothing more will come.
    over: CancellationToken,
}

impl Tail {
    /// Reads until the end.
    pub(crate) async fn follow(self, mut from: impl AsyncRead + Unpin) {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut chunk).await {
            self.push(&chunk[..count]);
        }
        self.over.cancel();
    }

    /// Waits for the end, for a bounded time.
    pub(crate) async fn whole(&self, within: Duration) {
        // Whoever holds it open for longer has nothing more to say.
        let _ = tokio::time::timeout(within, self.over.cancelled()).await;
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let over = kept.len().saturating_sub(LEN_MAX);
        kept.drain(..over);
    }

    /// The last `count` lines that are not empty, in one.
    pub(crate) fn lines(&self, count: usize) -> String {
        let lines = self.all();
        lines[lines.len().saturating_sub(count)..].join("; ")
    }

    /// Why a kernel gave up, in its own words, or else the last `count` lines.
    pub(crate) fn reason(&self, count: usize) -> String {
        let panics = |line: &String| line.contains("Kernel panic");
        self.all()
            .into_iter()
            .rfind(panics)
            .unwrap_or_else(|| self.lines(count))
    }

    /// Lines that are not empty, without control characters: what a guest prints must not move
    /// somebody's cursor.
    fn all(&self) -> Vec<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        drop(kept);
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.split(['\n', '\r']).map(|line| {
            let plain = line.chars().filter(|char| !char.is_control());
            plain.collect::<String>().trim().to_owned()
        });
        lines.filter(|line| !line.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_without_what_moves_a_cursor() {
        let tail = Tail::default();
        assert_eq!(tail.lines(3), "");
        tail.push(b"one\r\n\x1b[2Jtwo\n\nthree\xff");
        assert_eq!(tail.lines(2), "[2Jtwo; three\u{fffd}");
        assert_eq!(tail.reason(1), "three\u{fffd}");
        tail.push(b"\n[1.0] Kernel panic - not syncing: why\ntrace\n");
        assert_eq!(tail.reason(1), "[1.0] Kernel panic - not syncing: why");
        tail.push(&vec![b'x'; 3 * LEN_MAX]);
        assert_eq!(tail.lines(9).len(), LEN_MAX);
    }
}
