//! One request to the node and its answer: limits, retries, and what a broken connection means.
//!
//! A request that may be repeated is, after a pause, when the connection breaks or the platform says
//! that it is starting. One that may not is repeated only if it never reached anybody.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{self, Method, Response, header};
use ureq::{Agent, AsSendBody, Body, Error, SendBody};

use crate::clock;
use crate::error::{Code, Failure, Result};
use crate::server::Server;

/// LIMIT: repetitions of one request, after the first attempt.
pub(crate) const RETRIES_MAX: u32 = 3;
/// The first pause before a repetition; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(300);
/// LIMIT: time until a connection stands.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// LIMIT: time without a byte in either direction while a body is moving.
const STALL_MAX: Duration = Duration::from_secs(60);
/// LIMIT: time until an answer's head is there, beyond what the request asked the node to wait.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// LIMIT: an answer that is read whole, in bytes.
const ANSWER_LEN_MAX: u64 = 16 * 1024 * 1024;

/// Media type of a file that is uploaded.
const OCTETS: &str = "application/octet-stream";

/// What goes with a request.
pub(crate) enum Payload<'a> {
    None,
    Json(Vec<u8>),
    Bytes(&'a [u8]),
    /// `len` bytes from the beginning of `file`; `at` hears how far it has come.
    File {
        file: &'a File,
        len: u64,
        at: &'a dyn Fn(u64),
    },
}

/// Whether a request may be sent again when nobody knows if the first was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or the same thing once.
    Harmless,
    /// Twice is not the same as once.
    Never,
}

/// One request.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    /// With its query, from `/`.
    pub(crate) path: String,
    pub(crate) payload: Payload<'a>,
    pub(crate) repeat: Repeat,
    /// How long the node may take on purpose.
    pub(crate) wait: Duration,
}

/// An answer whose body has not been read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// What was asked, for messages: `GET /v1/apps`.
    pub(crate) asked: String,
    body: Body,
}

/// The way to one server.
#[derive(Debug)]
pub(crate) struct Http {
    agent: Agent,
    server: Server,
    /// Whether it has answered before: then it is worth waiting for, since it is only restarting.
    answered: Cell<bool>,
}

impl Request<'_> {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            payload: Payload::None,
            repeat: Repeat::Harmless,
            wait: Duration::ZERO,
        }
    }

    fn asked(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        format!("{} {path}", self.method)
    }
}

impl Http {
    pub(crate) fn new(server: Server) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // The server is this machine; a proxy of the environment would learn the token.
            .proxy(None)
            // One connection per request: none goes stale while a build runs.
            .max_idle_connections(0)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_per_write(Some(STALL_MAX))
            .user_agent(concat!("tcli/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.new_agent(),
            server,
            answered: Cell::new(false),
        }
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Sends a request, again if that helps and does no harm. The answer may be a refusal.
    pub(crate) fn exchange(&self, request: &Request<'_>, token: Option<&str>) -> Result<Answer> {
        let mut retries = 0;
        loop {
            let more = retries < RETRIES_MAX;
            let harmless = request.repeat == Repeat::Harmless;
            match self.attempt(request, token)? {
                Ok(answer) if answer.status == 503 && harmless && more => {}
                Ok(answer) => return Ok(answer),
                Err(error) if more && self.is_worth_repeating(&error, harmless) => {}
                Err(error) => return Err(self.broken(&request.asked(), &error)),
            }
            clock::pause(PAUSE * 2_u32.pow(retries));
            retries += 1;
        }
    }

    /// The outer error is of our own file, the inner one of the connection.
    fn attempt(
        &self,
        request: &Request<'_>,
        token: Option<&str>,
    ) -> Result<std::result::Result<Answer, Error>> {
        let uri = format!("{}{}", self.server, request.path);
        let mut head = http::Request::builder()
            .method(request.method.clone())
            .uri(uri);
        if let Some(token) = token {
            head = head.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let local = RefCell::new(None);
        let sent = match &request.payload {
            Payload::None if request.method == Method::GET => {
                self.send(request, head, SendBody::none())
            }
            Payload::None => self.send(request, head, [].as_slice()),
            Payload::Json(bytes) => {
                let head = head.header(header::CONTENT_TYPE, "application/json");
                self.send(request, head, bytes.as_slice())
            }
            Payload::Bytes(bytes) => {
                self.send(request, head.header(header::CONTENT_TYPE, OCTETS), *bytes)
            }
            Payload::File { file, len, at } => {
                // A refusal comes before the bytes are sent, not as a connection that breaks.
                let head = head
                    .header(header::CONTENT_TYPE, OCTETS)
                    .header(header::CONTENT_LENGTH, *len)
                    .header(header::EXPECT, "100-continue");
                let mut reader = FileReader::start(file, *len, *at, &local);
                self.send(request, head, SendBody::from_reader(&mut reader))
            }
        };
        if let Some(error) = local.into_inner() {
            let what = format!("Cannot read the file that is being uploaded: {error}.");
            return Err(Failure::new(Code::File, what));
        }
        Ok(sent.map(|response| {
            self.answered.set(true);
            let status = response.status().as_u16();
            Answer {
                status,
                asked: request.asked(),
                body: response.into_body(),
            }
        }))
    }

    fn send(
        &self,
        request: &Request<'_>,
        head: http::request::Builder,
        body: impl AsSendBody,
    ) -> std::result::Result<Response<Body>, Error> {
        let whole = head.body(body)?;
        let configured = self.agent.configure_request(whole);
        self.agent.run(
            configured
                .timeout_recv_response(Some(ANSWER_MAX + request.wait))
                .build(),
        )
    }

    fn is_worth_repeating(&self, error: &Error, harmless: bool) -> bool {
        match Broken::of(error) {
            Broken::NobodyThere => self.answered.get(),
            Broken::Cut => harmless,
            Broken::NotOurs => false,
        }
    }

    /// What a broken connection means, for people.
    pub(crate) fn broken(&self, asked: &str, error: &Error) -> Failure {
        let server = &self.server;
        match Broken::of(error) {
            Broken::NobodyThere => {
                let what = format!("No Tabbify answers at {server}.");
                Failure::new(Code::Unreachable, what).fix("Start one: tabbify up")
            }
            Broken::Cut => {
                let what = format!("The connection to {server} broke during {asked} ({error}).");
                Failure::new(Code::Interrupted, what).fix("Run the command again.")
            }
            Broken::NotOurs => {
                let what = format!("What answers at {server} is not a Tabbify ({asked}: {error}).");
                Failure::new(Code::BadAnswer, what).fix("Name the right one with --server.")
            }
        }
    }
}

/// How an exchange failed.
enum Broken {
    /// No connection came to stand.
    NobodyThere,
    /// It stood, and ended or fell silent too early.
    Cut,
    /// The other end does not speak HTTP as we do.
    NotOurs,
}

impl Broken {
    fn of(error: &Error) -> Self {
        use ureq::Timeout::{Connect, Resolve};
        match error {
            Error::HostNotFound | Error::ConnectionFailed | Error::Timeout(Connect | Resolve) => {
                Self::NobodyThere
            }
            Error::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::AddrNotAvailable => Self::NobodyThere,
                _ => Self::Cut,
            },
            Error::Timeout(_) => Self::Cut,
            _ => Self::NotOurs,
        }
    }
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The whole body as text, from an answer that is not endless.
    pub(crate) fn text(mut self, http: &Http) -> Result<String> {
        let limited = self
            .body
            .with_config()
            .limit(ANSWER_LEN_MAX)
            .lossy_utf8(true);
        limited
            .read_to_string()
            .map_err(|error| http.broken(&self.asked, &error))
    }

    /// The body as one of the contract's documents.
    pub(crate) fn json<T: DeserializeOwned>(self, http: &Http) -> Result<T> {
        let asked = self.asked.clone();
        let text = self.text(http)?;
        serde_json::from_str(&text).map_err(|error| {
            let server = http.server();
            let what = format!("{server} answers {asked} in a form that is not ours ({error}).");
            Failure::new(Code::BadAnswer, what)
                .fix("Is it a Tabbify of another release? Compare: tcli --version")
        })
    }

    /// The body as it arrives, without an end in time.
    pub(crate) fn stream(self) -> impl Read {
        self.body.into_with_config().limit(u64::MAX).reader()
    }
}

/// Reads a file from its beginning, tells how far it is, and keeps its own errors apart from those
/// of the connection.
struct FileReader<'a> {
    rest: io::Take<&'a File>,
    done: u64,
    at: &'a dyn Fn(u64),
    error: &'a RefCell<Option<io::Error>>,
}

impl<'a> FileReader<'a> {
    fn start(
        mut file: &'a File,
        len: u64,
        at: &'a dyn Fn(u64),
        error: &'a RefCell<Option<io::Error>>,
    ) -> Self {
        let failed = file.seek(SeekFrom::Start(0)).err();
        error.replace(failed);
        at(0);
        Self {
            rest: file.take(len),
            done: 0,
            at,
            error,
        }
    }
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.rest.read(buffer).and_then(|len| match len {
            0 if self.rest.limit() > 0 && !buffer.is_empty() => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it became shorter",
            )),
            len => Ok(len),
        });
        match read {
            Ok(len) => {
                self.done += u64::try_from(len).unwrap_or(0);
                (self.at)(self.done);
                Ok(len)
            }
            Err(error) => {
                let copy = io::Error::new(error.kind(), "the local file");
                self.error.replace(Some(error));
                Err(copy)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worth_repeating() {
        let http = Http::new(crate::server::DEFAULT.parse().unwrap());
        let io = |kind: io::ErrorKind| Error::Io(kind.into());
        let refused = io(io::ErrorKind::ConnectionRefused);
        let cut = io(io::ErrorKind::UnexpectedEof);
        let check = |error: &Error, harmless: bool, expected: bool| {
            assert_eq!(
                http.is_worth_repeating(error, harmless),
                expected,
                "{error}"
            );
        };
        // Nobody has answered yet: nobody is there, and waiting helps nobody.
        check(&refused, true, false);
        check(&cut, true, true);
        check(&cut, false, false);
        check(&Error::Timeout(ureq::Timeout::RecvResponse), true, true);
        check(&Error::BadUri("x".to_owned()), true, false);
        // Somebody has: it is restarting, and what never arrived may be sent by anybody.
        http.answered.set(true);
        check(&refused, true, true);
        check(&refused, false, true);
        check(&Error::Timeout(ureq::Timeout::Connect), false, true);
        check(&cut, false, false);
    }
}
