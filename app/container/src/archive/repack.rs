//! Writes what an engine loads: one image of the checked parts, under one name of ours.

use std::io::{self, Write};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;

use super::{Archive, layer};

/// LIMIT: chunks that wait for the engine.
const CHUNKS_WAITING: usize = 4;
/// Bytes of one chunk.
const CHUNK: usize = 256 * 1024;

impl Archive {
    /// What `docker load` takes, as a stream: the image under the name `reference`.
    pub(crate) fn docker_archive(
        &self,
        reference: String,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let (chunks, mut written) = mpsc::channel(CHUNKS_WAITING);
        let this = self.clone();
        // Ends by itself when the stream is dropped.
        tokio::task::spawn_blocking(move || {
            let mut writer = Chunks::new(chunks.clone());
            let done = this
                .write(&reference, &mut writer)
                .and_then(|()| writer.flush());
            if let Err(error) = done {
                // Whoever has gone needs no reason.
                let _ = chunks.blocking_send(Err(error));
            }
        });
        futures_util::stream::poll_fn(move |cx| written.poll_recv(cx))
    }

    fn write(&self, reference: &str, writer: &mut dyn Write) -> io::Result<()> {
        let names: Vec<String> = (0..self.layers.len()).map(|n| format!("{n}.tar")).collect();
        let manifest = serde_json::json!([{
            "Config": "config.json",
            "RepoTags": [reference],
            "Layers": names,
        }]);
        let mut builder = tar::Builder::new(writer);
        append(
            &mut builder,
            "config.json",
            self.config.len() as u64,
            &*self.config,
        )?;
        for (layer, name) in self.layers.iter().zip(&names) {
            let reader = layer::unpacked(&self.file, layer.span)?;
            append(&mut builder, name, layer.unpacked_len, reader)?;
        }
        let manifest = serde_json::to_vec(&manifest)?;
        append(
            &mut builder,
            "manifest.json",
            manifest.len() as u64,
            &*manifest,
        )?;
        builder.finish()
    }
}

fn append<W: Write>(
    builder: &mut tar::Builder<W>,
    name: &str,
    len: u64,
    content: impl io::Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(len);
    header.set_mode(0o600);
    // A file that changes while it is read stays within its header; the engine then refuses its digest.
    builder.append_data(&mut header, name, content.take(len))
}

/// Cuts what is written into chunks.
struct Chunks {
    chunks: mpsc::Sender<io::Result<Bytes>>,
    filling: Vec<u8>,
}

impl Chunks {
    fn new(chunks: mpsc::Sender<io::Result<Bytes>>) -> Self {
        let filling = Vec::with_capacity(CHUNK);
        Self { chunks, filling }
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(CHUNK - self.filling.len());
        self.filling.extend_from_slice(&bytes[..len]);
        if self.filling.len() == CHUNK {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.filling, Vec::with_capacity(CHUNK));
        if full.is_empty() {
            return Ok(());
        }
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the engine takes no more");
        self.chunks.blocking_send(Ok(full.into())).map_err(gone)
    }
}
