//! Streams in every direction. Nothing here holds more than one chunk, whatever the body's size.
//!
//! ```text
//! POST /echo                  sends every chunk back before it reads the next
//! POST /upload                reads it all: "<bytes> bytes, fnv1a <checksum>"
//! GET  /download?bytes=N      N bytes, the one at position i being i mod 251
//! GET  /slow?n=5&ms=200       n lines, one every ms milliseconds
//! ```

use std::io::{Read as _, Result, Write as _};

use wasi::clocks::monotonic_clock;
use wasi::exports::http::incoming_handler::Guest;
use wasi::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasi::io::streams::{InputStream, OutputStream};

/// The most bytes that are held at a time.
const CHUNK: usize = 64 * 1024;

struct Streams;

wasi::http::proxy::export!(Streams);

impl Guest for Streams {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let number = |name, default| parameter(query, name).unwrap_or(default);
        match path {
            "/echo" => respond(out, 200, |to| with_body(request, |from| echo(from, to))),
            "/upload" => respond(out, 200, |to| with_body(request, |from| upload(from, to))),
            "/download" => respond(out, 200, |to| download(number("bytes", 1 << 20), to)),
            "/slow" => respond(out, 200, |to| slow(number("n", 5), number("ms", 200), to)),
            _ => respond(out, 404, |to| {
                to.write_all(b"try /echo, /upload, /download, /slow\n")
            }),
        }
    }
}

fn echo(from: &mut InputStream, to: &mut OutputStream) -> Result<()> {
    let mut chunk = [0; CHUNK];
    loop {
        let len = from.read(&mut chunk)?;
        if len == 0 {
            return Ok(());
        }
        to.write_all(&chunk[..len])?;
        to.flush()?;
    }
}

fn upload(from: &mut InputStream, to: &mut OutputStream) -> Result<()> {
    let mut chunk = [0; CHUNK];
    let mut bytes = 0_u64;
    let mut fnv1a = 0xcbf2_9ce4_8422_2325_u64;
    loop {
        let len = from.read(&mut chunk)?;
        if len == 0 {
            return writeln!(to, "{bytes} bytes, fnv1a {fnv1a:016x}");
        }
        bytes += len as u64;
        for byte in &chunk[..len] {
            fnv1a = (fnv1a ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

fn download(bytes: u64, to: &mut OutputStream) -> Result<()> {
    let mut chunk = [0; CHUNK];
    let mut sent = 0;
    while sent < bytes {
        let len = CHUNK.min(usize::try_from(bytes - sent).unwrap_or(CHUNK));
        for (position, byte) in (sent..).zip(&mut chunk[..len]) {
            *byte = (position % 251) as u8;
        }
        to.write_all(&chunk[..len])?;
        sent += len as u64;
    }
    Ok(())
}

fn slow(n: u64, ms: u64, to: &mut OutputStream) -> Result<()> {
    for i in 1..=n {
        // Waiting costs no processor time: the instance sleeps until its clock wakes it.
        monotonic_clock::subscribe_duration(ms.saturating_mul(1_000_000)).block();
        // One write is one chunk on its way; `writeln!` would make a chunk of every piece.
        to.write_all(format!("{i} of {n}\n").as_bytes())?;
        to.flush()?;
    }
    Ok(())
}

/// The number that `name` has in a query such as `n=5&ms=200`.
fn parameter(query: &str, name: &str) -> Option<u64> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name)?.1.parse().ok()
}

/// Opens the request's body for `read`.
fn with_body(
    request: IncomingRequest,
    read: impl FnOnce(&mut InputStream) -> Result<()>,
) -> Result<()> {
    let body = request.consume().expect("the body is taken once");
    let mut stream = body.stream().expect("the stream is taken once");
    read(&mut stream)
}

/// Sends the head, then whatever `write` writes, as it writes it.
fn respond(
    out: ResponseOutparam,
    status: u16,
    write: impl FnOnce(&mut OutputStream) -> Result<()>,
) {
    let response = OutgoingResponse::new(Fields::new());
    response.set_status_code(status).expect("a valid status");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));

    let mut stream = body.write().expect("the stream is taken once");
    let written = write(&mut stream);
    drop(stream);
    match written {
        // Fails only if the caller has gone.
        Ok(()) => drop(OutgoingBody::finish(body, None)),
        // A body that is dropped unfinished breaks the connection: the caller cannot take what
        // it got for the whole.
        Err(error) => eprintln!("stopped: {error}"),
    }
}
