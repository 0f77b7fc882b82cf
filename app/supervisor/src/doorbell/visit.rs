//! One caller that waits for an instance, and then is connected with it.

use std::pin::pin;
use std::time::Duration;

use bytes::BytesMut;
use tabbify_api::ErrorCode;
use tabbify_api::apps::ERROR_HEADER;
use tabbify_api::doorbell::DoorAsk;
use tabbify_api::runner::Visitor;
use tabbify_process::chain;
use tabbify_types::APP_PORT;
use tabbify_types::event::v1::InstanceRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, split};
use tokio::net::UnixStream;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::table::Want;
use super::{Doorbell, HELD_MAX, Standing};
use crate::Error;
use crate::control::{Connection, Visited};
use crate::failpoint::{Point, pass};
use crate::news::{News, What};
use crate::runner_dir::RunnerDir;

/// LIMIT: bytes of a caller that are held here until its instance is there; the rest waits in its own machine.
const HELD_LEN_MAX: usize = 16 * 1024;
/// LIMIT: bytes of a connection that are on their way through here, for each direction.
const PASSING_LEN_MAX: usize = 16 * 1024;
/// LIMIT: how long a caller may go on after its instance has said all that it will.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
/// The pause between two attempts to reach a process that is not there yet, at first and at most.
const PAUSE: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// LIMIT: how long a caller that is told why it is not served may take to hear it.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// LIMIT: how long a living process may refuse a caller until that is its last word. One that is about to end
/// refuses for a moment.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// How often it is asked whether a caller that is in may still be there.
const LOOKED_UP_EVERY: Duration = Duration::from_secs(30);
/// How often a caller that has said enough is looked at: it may have gone.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(1);

/// Why a caller is not served.
enum Unserved {
    /// It has gone.
    Left,
    /// For a program and for people.
    Why(ErrorCode, String),
}

impl Doorbell {
    /// Holds a caller until its instance can be reached, and connects the two.
    pub(super) async fn hold<S>(
        &self,
        want: Want,
        place: Option<SemaphorePermit<'_>>,
        visitor: Visitor,
        mut stream: S,
    ) where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut held = BytesMut::new();
        let reached = tokio::select! {
            reached = self.reach(&want, visitor) => reached.map_err(|(code, why)| Unserved::Why(code, why)),
            () = gather(&mut stream, &mut held) => Err(Unserved::Left),
        };
        let of = want.of;
        drop((want, place));
        match reached {
            Ok(instance) => {
                pass(Point::Visited);
                let what = What::Visited;
                // The loop has ended: whoever comes next finds out by looking.
                let _ = self.0.news.send(News { of, what }).await;
                tokio::select! {
                    () = async {
                        // It may have waited for long.
                        if self.may_still(of, &visitor).await {
                            pass_on(stream, held, instance).await;
                        }
                    } => {}
                    () = self.shut_out(of, &visitor) => {
                        tracing::debug!(app = %of.app, peer = %visitor.peer, "a caller may be here no more");
                    }
                }
            }
            Err(Unserved::Left) => tracing::debug!(app = %of.app, "a caller did not wait"),
            Err(Unserved::Why(code, why)) => {
                tracing::info!(app = %of.app, instance = %of.instance, why, "a caller is not served at the doorbell");
                let _ = timeout(TOLD_WITHIN, tell(&mut stream, visitor.port, code, &why)).await;
            }
        }
    }

    /// Whether policy still lets a caller in, as far as anybody can tell.
    async fn may_still(&self, of: InstanceRef, visitor: &Visitor) -> bool {
        if visitor.is_node {
            return true;
        }
        let guest = Some(visitor.peer);
        let said = self.0.judge.again(DoorAsk { of, guest }).await;
        said.map_or(true, |ports| ports.admit(visitor.port))
    }

    /// Returns when a caller that is in may not be there any more.
    async fn shut_out(&self, of: InstanceRef, visitor: &Visitor) {
        loop {
            sleep(LOOKED_UP_EVERY).await;
            if !self.may_still(of, visitor).await {
                return;
            }
        }
    }

    /// A connection to the instance that is a visitor's.
    async fn reach(
        &self,
        want: &Want,
        visitor: Visitor,
    ) -> Result<BufReader<UnixStream>, (ErrorCode, String)> {
        let until = Instant::now() + HELD_MAX;
        let dir = RunnerDir::new(&self.0.runners, want.of);
        let mut standing = want.standing.clone();
        let (mut pause, mut refused) = (PAUSE, None);
        loop {
            let now = standing.borrow_and_update().clone();
            let changed = async {
                // An error means that nobody tells any more: what is known stays.
                if standing.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            match now {
                Standing::Alive => {
                    let entered = tokio::select! {
                        entered = enter(&dir, visitor, until) => entered,
                        () = sleep_until_down(want) => continue,
                    };
                    match entered {
                        Ok(Visited::In(connected)) => return Ok(connected),
                        Ok(Visited::Refused(why)) => {
                            let since = *refused.get_or_insert_with(Instant::now);
                            if since.elapsed() >= REFUSED_WITHIN {
                                let text = format!("The app does not take the connection: {why}.");
                                return Err((ErrorCode::Unavailable, text));
                            }
                        }
                        Err(error) => {
                            tracing::debug!(error = %chain(&error), "not let in yet");
                        }
                    }
                    tokio::select! {
                        () = changed => {}
                        () = sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                    }
                }
                Standing::Down => {
                    (pause, refused) = (PAUSE, None);
                    timeout_at(until, changed).await.map_err(|_| late())?;
                }
                Standing::Failed(_) | Standing::Gone(_) => return Err(unwakeable(now)),
            }
            if Instant::now() >= until {
                return Err(late());
            }
        }
    }
}

/// What a caller is told whose time is over.
fn late() -> (ErrorCode, String) {
    let seconds = HELD_MAX.as_secs();
    let text = format!("The app is asleep and did not wake within {seconds} s.");
    (ErrorCode::AppTimeout, text)
}

/// What a caller is told of an instance that will not wake.
fn unwakeable(standing: Standing) -> (ErrorCode, String) {
    let text = match standing {
        Standing::Failed(why) | Standing::Gone(Some(why)) => {
            format!("The app was asleep and could not be woken: {why}.")
        }
        Standing::Gone(None) | Standing::Alive | Standing::Down => {
            "The app was asleep, and has moved meanwhile. Try again.".to_owned()
        }
    };
    (ErrorCode::Unavailable, text)
}

/// Carries bytes both ways until both ends have ended, or the instance has and the caller takes its time.
async fn pass_on<S>(caller: S, held: BytesMut, instance: BufReader<UnixStream>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_caller, mut to_caller) = split(caller);
    let (mut from_instance, mut to_instance) = split(instance);
    let inwards = async {
        to_instance.write_all(&held).await?;
        drop(held);
        carry(&mut from_caller, &mut to_instance).await
    };
    let outwards = carry(&mut from_instance, &mut to_caller);
    let (mut inwards, mut outwards) = (pin!(inwards), pin!(outwards));
    // Who breaks off breaks the other off: both are dropped with this.
    tokio::select! {
        ended = &mut inwards => if ended.is_ok() {
            let _ = outwards.await;
        },
        ended = &mut outwards => if ended.is_ok() {
            let _ = timeout(ENDS_WITHIN, inwards).await;
        },
    }
}

/// One way, to its end.
async fn carry<R, W>(from: &mut R, to: &mut W) -> std::io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut passing = BytesMut::with_capacity(PASSING_LEN_MAX);
    while from.read_buf(&mut passing).await? > 0 {
        to.write_all_buf(&mut passing).await?;
        passing.clear();
        passing.reserve(PASSING_LEN_MAX);
    }
    to.shutdown().await
}

async fn enter(dir: &RunnerDir, visitor: Visitor, until: Instant) -> Result<Visited, Error> {
    let connection = Connection::open(dir).await?;
    let left = until.saturating_duration_since(Instant::now());
    connection.visit(visitor, left).await
}

/// Returns when the process that was alive is not any more.
async fn sleep_until_down(want: &Want) {
    let mut standing = want.standing.clone();
    let down = standing.wait_for(|standing| *standing != Standing::Alive);
    if down.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Takes what a caller sends while it waits, as far as there is room. Returns when it has gone.
async fn gather<S: AsyncRead + Unpin>(stream: &mut S, held: &mut BytesMut) {
    while held.len() < HELD_LEN_MAX {
        let mut limited = (&mut *stream).take((HELD_LEN_MAX - held.len()) as u64);
        match limited.read_buf(held).await {
            Ok(0) if held.is_empty() => return,
            // It has said all that it had to say, and waits for the answer.
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    // A stream that has been broken off mostly says so to who reads on. One byte at a time makes no difference
    // to what is held.
    loop {
        sleep(LOOKED_AT_EVERY).await;
        let mut limited = (&mut *stream).take(1);
        if limited.read_buf(held).await.is_err() {
            return;
        }
    }
}

/// Says why, to who speaks HTTP. Everybody else sees the connection end.
async fn tell<S>(stream: &mut S, port: u16, code: ErrorCode, why: &str) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if port == APP_PORT {
        let text: String = why.chars().filter(|c| !c.is_control()).collect();
        let head = format!(
            "HTTP/1.1 {} {}\r\n{ERROR_HEADER}: {}\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{text}",
            code.status(),
            code.title(),
            code.as_str(),
            text.len(),
        );
        stream.write_all(head.as_bytes()).await?;
    }
    stream.shutdown().await?;
    // What is not read would make a reset of the end, which may overtake the answer.
    let mut rest = BytesMut::with_capacity(PASSING_LEN_MAX);
    while stream.read_buf(&mut rest).await? > 0 {
        rest.clear();
    }
    Ok(())
}
