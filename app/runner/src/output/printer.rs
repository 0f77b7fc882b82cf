//! One of a guest's output streams: cuts what it writes into lines and queues them.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tabbify_api::logs::{LINE_LEN_MAX, LogLine, Stream};
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError};

use super::{Entry, Output, line_end};

/// LIMIT: bytes that a guest may write at a time, and so the most lines that wait in a printer.
const PERMIT: usize = 4096;

/// One of a guest's output streams; clones are the same stream.
#[derive(Debug, Clone)]
pub struct Printer {
    output: Output,
    lines: Arc<Mutex<Lines>>,
}

#[derive(Debug)]
struct Lines {
    output: Output,
    stream: Stream,
    /// What the guest wrote after its last line end.
    partial: Vec<u8>,
    /// Whole lines that the queue has not taken yet.
    whole: VecDeque<LogLine>,
}

impl Printer {
    pub(super) fn new(output: Output, stream: Stream) -> Self {
        let lines = Lines {
            output: output.clone(),
            stream,
            partial: Vec::new(),
            whole: VecDeque::new(),
        };
        Self {
            output,
            lines: Arc::new(Mutex::new(lines)),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Lines) -> T) -> T {
        act(&mut self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a piece of the stream, and returns when the queue has taken its lines.
    pub async fn print(&self, piece: &[u8]) {
        self.with(|lines| lines.write(piece));
        self.settle().await;
    }

    /// Queues what is left, with the line that has no end yet. Called when the guest is done; a
    /// guest that is cancelled gets this without waiting, when its printers are dropped.
    pub async fn finish(&self) {
        self.with(Lines::end_partial);
        self.settle().await;
    }

    /// Returns when the queue has taken every whole line.
    async fn settle(&self) {
        while self.with(Lines::hand_over) > 0 {
            // Waits for a place in the queue and gives it back: the next turn uses it.
            if self.output.queue.reserve().await.is_err() {
                return;
            }
        }
    }
}

impl Lines {
    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(end) => {
                    self.partial.extend_from_slice(end);
                    self.partial.pop_if(|last| *last == b'\r');
                    self.cut_partial();
                    self.push_line();
                }
                None => {
                    self.partial.extend_from_slice(piece);
                    self.cut_partial();
                }
            }
        }
    }

    fn cut_partial(&mut self) {
        while self.partial.len() > LINE_LEN_MAX {
            let rest = self.partial.split_off(line_end(&self.partial));
            self.push_line();
            self.partial = rest;
        }
    }

    fn end_partial(&mut self) {
        if !self.partial.is_empty() {
            self.push_line();
        }
    }

    fn push_line(&mut self) {
        let line = self.output.line(self.stream, &self.partial);
        self.whole.push_back(line);
        self.partial.clear();
    }

    /// Queues what the queue takes now; returns how many lines it did not.
    fn hand_over(&mut self) -> usize {
        while let Some(line) = self.whole.pop_front() {
            match self.output.queue.try_send(Entry::Line(line)) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(Entry::Line(line))) => {
                    self.whole.push_front(line);
                    break;
                }
                // Nobody writes any more.
                Err(_) => self.whole.clear(),
            }
        }
        self.whole.len()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.end_partial();
        let lost = self.hand_over() as u64;
        self.output.lost.fetch_add(lost, Ordering::Relaxed);
    }
}

impl IsTerminal for Printer {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Printer {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for this form, and this runner does not link it.
        Box::new(tokio::io::sink())
    }
}

impl OutputStream for Printer {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.with(|lines| {
            lines.write(&bytes);
            lines.hand_over();
        });
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        let settled = self.with(Lines::hand_over) == 0;
        Ok(if settled { PERMIT } else { 0 })
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Printer {
    async fn ready(&mut self) {
        self.settle().await;
    }
}
