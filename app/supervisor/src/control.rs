//! The supervisor's end of a runner's control socket: one JSON object a line, request and answer in
//! turn, after each side has proven that it knows the secret of the boot document.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tabbify_api::coordinator::Spawn;
use tabbify_api::mesh::PeerRecord;
use tabbify_api::runner::{
    Answer, Boot, CONTROL_SOCKET, CoordinatorAt, LINE_LEN_MAX, Request, StateName, Status, Visitor,
};
use tabbify_process::unix;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::Error;
use crate::runner_dir::RunnerDir;

/// LIMIT: how long a runner may take for an answer that needs no work.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: how long a runner may take for [`Request::Wait`], which it answers after 30 s.
const WAIT_WITHIN: Duration = Duration::from_secs(45);

const CALLER_PROOF: &[u8] = b"tabbify-control-caller-v1\0";
const RUNNER_PROOF: &[u8] = b"tabbify-control-runner-v1\0";

/// What both sides know: 32 bytes that never show.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    pub(crate) fn mint() -> Self {
        Self(tabbify_process::random())
    }

    /// The secret of a boot document, unless it is malformed.
    pub(crate) fn of(boot: &Boot) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(&boot.secret).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// As it stands in a boot document.
    pub(crate) fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    fn proof(&self, context: &[u8], nonce: &[u8; 32]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(context).update(nonce);
        hasher.finalize()
    }
}

/// What a runner makes of a visitor.
#[derive(Debug)]
pub(crate) enum Visited {
    /// It is the app's from here on.
    In(BufReader<UnixStream>),
    /// It is not let in: why.
    Refused(String),
}

/// A connection whose other end has proven to be the runner that was spawned here.
#[derive(Debug)]
pub(crate) struct Connection {
    dir: RunnerDir,
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the runner with the secret of its boot document.
    pub(crate) async fn open(dir: &RunnerDir) -> Result<Self, Error> {
        let boot = dir.boot().map_err(Error::file(dir.path()))?;
        let secret = Secret::of(&boot).ok_or_else(|| Error::Control {
            path: dir.path().to_owned(),
            detail: "its boot document has no secret".to_owned(),
        })?;
        Self::prove(dir, &secret).await
    }

    /// Connects and exchanges proofs.
    async fn prove(dir: &RunnerDir, secret: &Secret) -> Result<Self, Error> {
        let path = dir.path().join(CONTROL_SOCKET);
        let stream = timeout(ANSWER_WITHIN, unix::connect(dir.path(), CONTROL_SOCKET))
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(Error::file(path))?;
        let mut connection = Self {
            dir: dir.clone(),
            stream: BufReader::new(stream),
        };
        let nonce: [u8; 32] = tabbify_process::random();
        let hello = Request::Hello {
            nonce: URL_SAFE_NO_PAD.encode(nonce),
            proof: secret.proof(CALLER_PROOF, &nonce).to_hex().to_string(),
        };
        let Answer::Hello { proof } = connection.ask(&hello, ANSWER_WITHIN).await? else {
            return Err(connection.wrong("it answered something else to hello"));
        };
        // Comparing two `blake3::Hash` takes the same time wherever they differ.
        match blake3::Hash::from_hex(&proof) {
            Ok(proof) if proof == secret.proof(RUNNER_PROOF, &nonce) => Ok(connection),
            _ => Err(connection.wrong("it does not know the secret of its boot document")),
        }
    }

    pub(crate) async fn status(&mut self) -> Result<Status, Error> {
        let answer = self.ask(&Request::Status, ANSWER_WITHIN).await?;
        self.expect_status(answer)
    }

    /// Returns the status as soon as its state is another than `seen`, or after about 30 s.
    pub(crate) async fn wait(&mut self, seen: StateName) -> Result<Status, Error> {
        let answer = self.ask(&Request::Wait { seen }, WAIT_WITHIN).await?;
        self.expect_status(answer)
    }

    pub(crate) async fn set_peers(&mut self, peers: Vec<PeerRecord>) -> Result<(), Error> {
        let answer = self.ask(&Request::SetPeers { peers }, ANSWER_WITHIN).await;
        self.expect_done(&answer?)
    }

    /// Says where the coordinator is now. A runner that is older than this request goes on with what it knows.
    pub(crate) async fn set_coordinator(&mut self, at: CoordinatorAt) -> Result<(), Error> {
        let said = Request::SetCoordinator { at };
        match self.ask(&said, ANSWER_WITHIN).await? {
            Answer::Done => Ok(()),
            Answer::Refused { detail } => {
                let path = self.dir.path().display();
                tracing::warn!(%path, detail, "a runner is not told where the coordinator is");
                Ok(())
            }
            other => Err(self.unexpected(&other)),
        }
    }

    /// Gives a runner that waits for one a spawn ticket; it is starting then.
    pub(crate) async fn spawn(&mut self, ticket: Spawn) -> Result<(), Error> {
        let answer = self.ask(&Request::Spawn(ticket), ANSWER_WITHIN).await;
        self.expect_done(&answer?)
    }

    /// Requests that finished and that were cut, once the runner is drained.
    pub(crate) async fn drain(&mut self, deadline: Duration) -> Result<(u64, u64), Error> {
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let within = deadline.saturating_add(ANSWER_WITHIN);
        match self.ask(&Request::Drain { deadline_ms }, within).await? {
            Answer::Drained { finished, cut } => Ok((finished, cut)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The same of a runner that is idle: `None` if it has something to do again, and goes on.
    pub(crate) async fn sleep(&mut self, deadline: Duration) -> Result<Option<(u64, u64)>, Error> {
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let within = deadline.saturating_add(ANSWER_WITHIN);
        match self.ask(&Request::Sleep { deadline_ms }, within).await? {
            Answer::Drained { finished, cut } => Ok(Some((finished, cut))),
            Answer::Refused { detail } => {
                tracing::debug!(path = %self.dir.path().display(), detail, "it does not go to sleep");
                Ok(None)
            }
            other => Err(self.unexpected(&other)),
        }
    }

    /// Makes the connection a visitor's, once the app can be reached, at most after `within`.
    pub(crate) async fn visit(
        mut self,
        visitor: Visitor,
        within: Duration,
    ) -> Result<Visited, Error> {
        match self.ask(&Request::Door(visitor), within).await? {
            Answer::Done => Ok(Visited::In(self.stream)),
            Answer::Refused { detail } => Ok(Visited::Refused(detail)),
            other => Err(self.unexpected(&other)),
        }
    }

    pub(crate) async fn stop(&mut self) -> Result<(), Error> {
        let answer = self.ask(&Request::Stop, ANSWER_WITHIN).await?;
        self.expect_done(&answer)
    }

    async fn ask(&mut self, request: &Request, within: Duration) -> Result<Answer, Error> {
        let talk = timeout(within, self.exchange(request)).await;
        talk.unwrap_or_else(|_| Err(self.wrong(format!("no answer within {} s", within.as_secs()))))
    }

    async fn exchange(&mut self, request: &Request) -> Result<Answer, Error> {
        let mut line = serde_json::to_vec(request).map_err(|error| self.wrong(error))?;
        line.push(b'\n');
        if line.len() > LINE_LEN_MAX {
            return Err(self.wrong(format!("a request of {} bytes is too long", line.len())));
        }
        let path = self.dir.path().join(CONTROL_SOCKET);
        let written = self.stream.get_mut().write_all(&line).await;
        written.map_err(Error::file(&path))?;

        let mut answer = Vec::new();
        let limit = u64::try_from(LINE_LEN_MAX).unwrap_or(u64::MAX);
        let mut limited = (&mut self.stream).take(limit);
        let read = limited.read_until(b'\n', &mut answer).await;
        read.map_err(Error::file(&path))?;
        if answer.pop() != Some(b'\n') {
            return Err(self.wrong("its answer ends in the middle or is too long"));
        }
        serde_json::from_slice(&answer).map_err(|error| self.wrong(error))
    }

    fn expect_status(&self, answer: Answer) -> Result<Status, Error> {
        match answer {
            Answer::Status(status) if status.of == self.dir.of() => Ok(status),
            Answer::Status(_) => Err(self.wrong("it says that it is another instance")),
            other => Err(self.unexpected(&other)),
        }
    }

    fn expect_done(&self, answer: &Answer) -> Result<(), Error> {
        match answer {
            Answer::Done => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    fn unexpected(&self, answer: &Answer) -> Error {
        match answer {
            Answer::Refused { detail } => self.wrong(format!("it refused: {detail:.200}")),
            _ => self.wrong("its answer does not belong to the request"),
        }
    }

    fn wrong(&self, detail: impl ToString) -> Error {
        Error::Control {
            path: self.dir.path().to_owned(),
            detail: detail.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
