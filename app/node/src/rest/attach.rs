//! Into a running app: a command in one of its instances, and connections to its raw ports. Each is in the log
//! before it begins, under the name of who asked; of a minute's connections to a port, the first.

use std::io;
use std::net::SocketAddrV6;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tabbify_api::attach::{
    ATTACH_PORT, CommandLine, EXEC_PATH, LINE_LEN_MAX, PORT_PROTOCOL, RUN_COMMAND_LEN_MAX,
    RunCommand,
};
use tabbify_api::auth::{Verified, scope};
use tabbify_api::log::Append;
use tabbify_api::{BoxFuture, ErrorCode, Problem};
use tabbify_http::ndjson::Lines;
use tabbify_http::{Again, AnswerError, Client, Connection as Connected, wanted_upgrade};
use tabbify_process::connect::{Connect, Stream};
use tabbify_types::event::v1::{AppCommandAdmitted, AppPortAdmitted, InstanceRef};
use tabbify_types::{AppId, AppUla, Event, EventId, InstanceUla, NewEvent, Segment, Timestamp};
use tokio::time::timeout;

use super::ndjson::{self, Line, QUIET_MAX, Source};
use super::{Call, body, event};
use crate::answer::{self, Answer, BodyError};
use crate::dial::{Dial, DialError};
use crate::error::Refusal;
use crate::listen::Caller;
use crate::tunnel;
use crate::view::App;

/// LIMIT: how long an instance may take to begin with a command.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// LIMIT: how long a command may say nothing at all; its runner speaks every 15 s.
const SILENT_MAX: Duration = Duration::from_secs(45);
/// LIMIT: how much of a program's name is recorded, in bytes.
const PROGRAM_LEN_MAX: usize = 256;
/// LIMIT: how often one who has many connections to a port is recorded with them, in milliseconds.
const RECORDED_EACH_MS: u64 = 60_000;
/// LIMIT: the words of a runner that refuses, in bytes.
const REFUSAL_LEN_MAX: usize = 16 * 1024;

/// `POST /v1/apps/{id}/exec`.
pub(crate) async fn exec(
    call: Call<'_>,
    incoming: &mut Incoming,
    app: AppId,
) -> Result<Answer, Refusal> {
    let known = call.caller_on(scope::APP_EXEC, app)?;
    let wanted: RunCommand = body::json(call, incoming, RUN_COMMAND_LEN_MAX).await?;
    if !wanted.is_sound() {
        let what = "the command is empty, too long, or has a byte that no argument may have";
        return Err(Refusal::BadRequest(what.to_owned()));
    }
    let primary = call.app(&known, app, App::primary)?;
    let nobody = || {
        let address = SocketAddrV6::new(AppUla::derive(app).addr(), ATTACH_PORT, 0, 0);
        Refusal::Dial(DialError::NoLease(address))
    };
    let instance = primary.ok_or_else(nobody)?;
    let program = wanted.command.first().map_or("", String::as_str);
    let program = program[..program.floor_char_boundary(PROGRAM_LEN_MAX)].to_owned();
    let of = InstanceRef { app, instance };
    let admitted = AppCommandAdmitted { of, program };
    admit(call, &known, app, EventId::mint(), admitted).await?;
    let runner = Runner {
        address: SocketAddrV6::new(InstanceUla::derive(app, instance).addr(), ATTACH_PORT, 0, 0),
        dial: Arc::clone(&call.node.dial),
    };
    let said = begin(call, runner, &wanted).await?;
    Ok(ndjson::answer(said, call.leash(known)))
}

/// Has it in the log that the caller does this; once, if it is there with this id.
async fn admit(
    call: Call<'_>,
    known: &Verified,
    app: AppId,
    id: EventId,
    admitted: impl Into<Event>,
) -> Result<(), Refusal> {
    let segment = Segment::apps(&known.tenant);
    let key = format!("access/{app}");
    let made = event(NewEvent::with_id(id, segment, key, &admitted.into()))?;
    let appended = call.append(known, Append::of(vec![made])).await;
    appended.map(drop).map_err(Refusal::Append)
}

async fn begin(call: Call<'_>, runner: Runner, wanted: &RunCommand) -> Result<Said, Refusal> {
    let tasks = &call.node.tasks;
    let client = Client::new("command client", Arc::new(runner), ANSWER_WITHIN, tasks);
    let body = serde_json::to_vec(wanted).expect("INVARIANT: our own shapes serialize");
    let request = Request::post(EXEC_PATH)
        .header(HOST, "runner")
        .body(Full::new(Bytes::from(body)))
        .expect("INVARIANT: the path is a constant");
    let answer = client.send(request, Again::Never).await.map_err(silent)?;
    if answer.status() != StatusCode::OK {
        let (parts, bytes) = answer.whole(REFUSAL_LEN_MAX).await.map_err(silent)?;
        let problem = Problem::of_answer(parts.status.as_u16(), &bytes);
        return Err(Refusal::Instance(Box::new(problem)));
    }
    let (_, body, connection) = answer.into_parts();
    Ok(Said {
        lines: Lines::new(body, LINE_LEN_MAX),
        _connection: connection,
    })
}

fn silent(error: AnswerError) -> Refusal {
    let detail = format!(
        "the instance runs no command now: {}",
        tabbify_process::chain(&error)
    );
    let problem = Problem::new(ErrorCode::AppUnreachable, detail).with_fix("Run: tcli status");
    Refusal::Instance(Box::new(problem))
}

/// The way to an instance's runner.
#[derive(Debug)]
struct Runner {
    address: SocketAddrV6,
    dial: Arc<dyn Dial>,
}

impl Connect for Runner {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let stream = self.dial.dial(self.address).await;
            let stream = stream.map_err(io::Error::other)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// What the runner says, as far as it is what it should be.
struct Said {
    lines: Lines<Incoming>,
    /// Closes when it is dropped, and with it the command ends.
    _connection: Connected,
}

impl Source for Said {
    type Item = CommandLine;
    type Error = BodyError;

    async fn next(&mut self) -> Result<Option<Line<CommandLine>>, BodyError> {
        match timeout(SILENT_MAX.max(QUIET_MAX), self.lines.next()).await {
            Ok(line) => Ok(line?),
            Err(_) => Err("the instance says nothing any more".into()),
        }
    }
}

/// `GET /v1/apps/{id}/ports/{port}`.
pub(crate) async fn port(
    call: Call<'_>,
    caller: &Caller,
    app: AppId,
    port: u16,
) -> Result<Answer, Refusal> {
    let known = call.caller_on(scope::APP_FORWARD, app)?;
    let ports = call.app(&known, app, |app| app.ports().to_vec())?;
    if !ports.contains(&port) {
        return Err(Refusal::NoPort { port, ports });
    }
    let wanted = wanted_upgrade(&call.parts.headers);
    let side = call.parts.extensions.get::<OnUpgrade>().cloned();
    let is_ours = |wanted: &HeaderValue| wanted.as_bytes() == PORT_PROTOCOL.as_bytes();
    let Some(side) = side.filter(|_| wanted.is_some_and(|wanted| is_ours(&wanted))) else {
        let what = format!("this path is for `Upgrade: {PORT_PROTOCOL}` alone, with HTTP/1.1");
        return Err(Refusal::BadRequest(what));
    };
    let id = id_of_port(app, port, &known.subject, call.node.clock.now());
    admit(call, &known, app, id, AppPortAdmitted { app, port }).await?;
    let address = SocketAddrV6::new(AppUla::derive(app).addr(), port, 0, 0);
    let within = call.node.config.timeouts.connect;
    let dialed = timeout(within, call.node.dial.dial(address)).await;
    let stream = dialed.unwrap_or(Err(DialError::TimedOut(address)));
    let stream = stream.map_err(Refusal::Dial)?;
    tunnel::raw(call.node, caller, side, stream, call.leash(known));
    let mut switching = answer::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = switching.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(PORT_PROTOCOL));
    Ok(switching)
}

/// The same for all connections of somebody to a port within a minute: the log takes the first of them, and each
/// of the others finds that it is there. So what a program that reconnects for ever writes has a limit.
fn id_of_port(app: AppId, port: u16, subject: &str, at: Timestamp) -> EventId {
    let minute = at.millis() / RECORDED_EACH_MS;
    let label = format!("app_port_admitted {port} {minute} {subject}");
    EventId::from_uuid(app.uuid()).derived(&label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_recorded_once_a_minute_for_each_who_uses_it() {
        let app = AppId::mint();
        let at = |secs: u64| Timestamp::from_millis(secs * 1000);
        let first = id_of_port(app, 5432, "user:a", at(600));
        assert_eq!(id_of_port(app, 5432, "user:a", at(659)), first);
        for other in [
            id_of_port(app, 5432, "user:a", at(660)),
            id_of_port(app, 5432, "user:b", at(600)),
            id_of_port(app, 5433, "user:a", at(600)),
            id_of_port(AppId::mint(), 5432, "user:a", at(600)),
        ] {
            assert_ne!(other, first);
        }
    }
}
