//! The lines of one machine that is not ours, from its supervisor over the mesh. A followed log that breaks
//! off is gone on with from the line that came last.

use std::fmt;
use std::io;
use std::net::SocketAddrV6;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tabbify_api::BoxFuture;
use tabbify_api::logs::{FOUND_HEADER, LINE_LEN_MAX, LogLine, LogQuery, SUPERVISOR_PORT};
use tabbify_http::ndjson::{Line, Lines};
use tabbify_http::{Again, Client, Connection};
use tabbify_process::connect::{Connect, Stream};
use tabbify_process::{Tasks, chain};
use tabbify_types::{AppId, HostName, HostUla, Timestamp};
use tokio::time::Instant;

use crate::dial::Dial;

/// LIMIT: how long a machine may take to begin with its lines.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// LIMIT: how long a followed log may say nothing at all; its supervisor speaks every 15 s.
const SILENT_MAX: Duration = Duration::from_secs(45);
/// When a machine that broke off is asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(3);
/// LIMIT: one line as JSON, in bytes: every byte of the text may be an escape of six.
const JSON_LEN_MAX: usize = 6 * LINE_LEN_MAX + 1024;

/// A machine, and the way to it.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) host: HostName,
    pub(crate) address: HostUla,
    pub(crate) dial: Arc<dyn Dial>,
    pub(crate) tasks: Tasks,
}

impl Connect for Machine {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        let address = SocketAddrV6::new(self.address.addr(), SUPERVISOR_PORT, 0, 0);
        Box::pin(async move {
            let stream = self.dial.dial(address).await.map_err(io::Error::other)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// What a machine says next.
#[derive(Debug)]
pub(super) enum Said {
    Line(LogLine),
    /// That was all.
    End,
    /// Something is missing from here on; `goes_on` says that it is asked again.
    Missing {
        why: String,
        goes_on: bool,
    },
}

/// The lines of one machine.
#[derive(Debug)]
pub(super) struct Remote {
    client: Client,
    host: HostName,
    app: AppId,
    query: LogQuery,
    /// When it was opened.
    opened: Timestamp,
    /// The time of the last line, and how many of that time there were.
    last: Option<(Timestamp, usize)>,
    /// Lines of the last one's time that come again.
    again: usize,
    found: usize,
    state: State,
}

enum State {
    Open(Opened),
    Broken(String),
    Waiting(Instant),
    Opening(BoxFuture<'static, Result<Opened, String>>),
    Ended,
}

struct Opened {
    lines: Lines<Incoming>,
    found: usize,
    heard: Instant,
    /// Closes when it is dropped.
    _connection: Connection,
}

impl Remote {
    pub(super) async fn open(
        machine: Machine,
        app: AppId,
        query: LogQuery,
        opened: Timestamp,
    ) -> Self {
        let (host, tasks) = (machine.host.clone(), machine.tasks.clone());
        let client = Client::new("log reader", Arc::new(machine), ANSWER_WITHIN, &tasks);
        let (found, state) = match ask(client.clone(), query.path_of(app)).await {
            Ok(opened) => (opened.found, State::Open(opened)),
            Err(why) => (0, State::Broken(why)),
        };
        Self {
            client,
            host,
            app,
            query,
            opened,
            last: None,
            again: 0,
            found,
            state,
        }
    }

    pub(super) const fn host(&self) -> &HostName {
        &self.host
    }

    pub(super) const fn found(&self) -> usize {
        self.found
    }

    /// Safe to cancel.
    pub(super) async fn next(&mut self) -> Said {
        loop {
            match &mut self.state {
                State::Open(opened) => {
                    // Since it was heard, not since this was asked: other machines' lines end this wait.
                    let until = opened.heard + SILENT_MAX;
                    let next = tokio::time::timeout_at(until, opened.lines.next::<LogLine>());
                    let next = next.await;
                    if let Ok(Ok(Some(_))) = next {
                        opened.heard = Instant::now();
                    }
                    let why = match next {
                        Ok(Ok(Some(Line::Object(line)))) => {
                            if self.is_new(&line) {
                                return Said::Line(line);
                            }
                            continue;
                        }
                        Ok(Ok(Some(Line::Blank))) => continue,
                        Ok(Ok(None)) if !self.query.follow => {
                            self.state = State::Ended;
                            continue;
                        }
                        Ok(Ok(None)) => "it ended the connection".to_owned(),
                        Ok(Err(error)) => chain(&error).to_string(),
                        Err(_) => format!("it said nothing for {} s", SILENT_MAX.as_secs()),
                    };
                    self.state = State::Broken(why);
                }
                State::Broken(why) => {
                    let (why, goes_on) = (std::mem::take(why), self.query.follow);
                    self.state = if goes_on {
                        State::Waiting(Instant::now() + AGAIN_AFTER)
                    } else {
                        State::Ended
                    };
                    return Said::Missing { why, goes_on };
                }
                State::Waiting(until) => {
                    tokio::time::sleep_until(*until).await;
                    let path = self.rest().path_of(self.app);
                    self.again = self.last.map_or(0, |(_, count)| count);
                    self.state = State::Opening(Box::pin(ask(self.client.clone(), path)));
                }
                State::Opening(opening) => {
                    self.state = match opening.await {
                        Ok(opened) => State::Open(opened),
                        Err(_) => State::Waiting(Instant::now() + AGAIN_AFTER),
                    };
                }
                State::Ended => return Said::End,
            }
        }
    }

    /// What is still wanted.
    fn rest(&self) -> LogQuery {
        LogQuery {
            since: Some(self.last.map_or(self.opened, |(at, _)| at)),
            tail: None,
            follow: self.query.follow,
        }
    }

    /// Whether a line has not been given before; remembers it.
    fn is_new(&mut self, line: &LogLine) -> bool {
        match &mut self.last {
            Some((at, _)) if *at == line.at && self.again > 0 => {
                self.again -= 1;
                return false;
            }
            Some((at, count)) if *at == line.at => *count += 1,
            last => *last = Some((line.at, 1)),
        }
        self.again = 0;
        true
    }
}

/// Begins to read; why not, for people.
async fn ask(client: Client, path: String) -> Result<Opened, String> {
    let request = Request::get(path)
        .header(header::HOST, "supervisor")
        .body(Full::<Bytes>::default())
        .map_err(|error| error.to_string())?;
    let answer = client.send(request, Again::Harmless).await;
    let answer = answer.map_err(|error| chain(&error).to_string())?;
    if answer.status() != StatusCode::OK {
        return Err(format!("it answers {}", answer.status()));
    }
    let (parts, body, connection) = answer.into_parts();
    let found = parts.headers.get(FOUND_HEADER);
    let found = found.and_then(|found| found.to_str().ok()?.parse().ok());
    Ok(Opened {
        lines: Lines::new(body, JSON_LEN_MAX),
        found: found.unwrap_or(0),
        heard: Instant::now(),
        _connection: connection,
    })
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open(_) => "Open",
            Self::Broken(_) => "Broken",
            Self::Waiting(_) => "Waiting",
            Self::Opening(_) => "Opening",
            Self::Ended => "Ended",
        })
    }
}
