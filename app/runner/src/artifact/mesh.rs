//! The platform's artifacts over the runner's own mesh: asked for until they come, within limits.
//! Whatever comes is verified like any other file; here only its length is watched.

use std::io;
use std::net::SocketAddrV6;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tabbify_api::artifact::ARTIFACTS_PATH;
use tabbify_api::runner::Failure;
use tabbify_api::{BoxFuture, Problem};
use tabbify_http::{Again, Answer, Client};
use tabbify_mesh::Mesh;
use tabbify_process::{Tasks, chain};
use tokio::fs::File;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::{Store, failure, missing, too_long};
use crate::to_service::Dial;

/// LIMIT: attempts to fetch one file.
const ATTEMPTS_MAX: u32 = 8;
/// The pause before the next attempt, at first and at most; doubles with each.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// LIMIT: how long the head of an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// LIMIT: how long a file may stop coming.
const STALLED_MAX: Duration = Duration::from_secs(30);
/// LIMIT: how long one attempt may take, however steadily it comes.
const FETCH_WITHIN: Duration = Duration::from_secs(600);
/// LIMIT: bytes of a refusal.
const PROBLEM_LEN_MAX: usize = 16 * 1024;
/// What stands for itself in a path (RFC 3986 section 2.3), and its slashes.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// The artifacts at an address of the mesh.
#[derive(Debug)]
pub(super) struct OverMesh {
    client: Client,
    address: SocketAddrV6,
}

/// Where a file goes.
#[derive(Debug, Clone, Copy)]
enum To<'a> {
    Memory,
    File(&'a Path),
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    failure(format!("{} cannot be written: {error}", path.display()))
}

/// Why an attempt gave nothing.
enum Failed {
    /// The next one may.
    Now(String),
    /// None will.
    ForGood(Failure),
}

impl OverMesh {
    pub(super) fn new(mesh: Mesh, address: SocketAddrV6, tasks: &Tasks) -> Self {
        let dial = Arc::new(Dial { mesh, address });
        Self {
            client: Client::new("artifact client", dial, ANSWER_WITHIN, tasks),
            address,
        }
    }

    /// Fetches a file, from its beginning with each attempt; what goes to a file is not among what it gives.
    async fn fetch(&self, key: &str, len_max: u64, to: To<'_>) -> Result<Vec<u8>, Failure> {
        let mut pause = PAUSE;
        let mut attempt = 1;
        loop {
            let fetched = tokio::time::timeout(FETCH_WITHIN, self.attempt(key, len_max, to)).await;
            let why = match fetched {
                Ok(Ok(bytes)) => return Ok(bytes),
                Ok(Err(Failed::ForGood(failure))) => return Err(failure),
                Ok(Err(Failed::Now(why))) => why,
                Err(_) => format!("not within {} s", FETCH_WITHIN.as_secs()),
            };
            if attempt >= ATTEMPTS_MAX {
                let from = self.address;
                return Err(failure(format!(
                    "{key} cannot be fetched from {from} ({attempt} attempts): {why}"
                )));
            }
            tracing::info!(key, why, attempt, "the artifact is asked for again");
            tokio::time::sleep(pause).await;
            (attempt, pause) = (attempt + 1, (pause * 2).min(PAUSE_MAX));
        }
    }

    async fn attempt(&self, key: &str, len_max: u64, to: To<'_>) -> Result<Vec<u8>, Failed> {
        let path = utf8_percent_encode(key, ESCAPED);
        let request = Request::get(format!("{ARTIFACTS_PATH}{path}"))
            .header(header::HOST, "registry")
            .body(Full::default());
        let request = request.map_err(|error| Failed::ForGood(failure(error.to_string())))?;
        let answer = self.client.send(request, Again::Harmless).await;
        let answer = answer.map_err(|error| Failed::Now(chain(&error).to_string()))?;
        match answer.status() {
            StatusCode::OK => {
                let mut memory = Vec::new();
                match to {
                    To::Memory => body(key, answer, len_max, &mut memory).await?,
                    To::File(path) => {
                        let unwritable = |error| Failed::ForGood(unwritable(path, &error));
                        let mut file = File::create(path).await.map_err(unwritable)?;
                        body(key, answer, len_max, &mut file).await?;
                    }
                }
                Ok(memory)
            }
            StatusCode::NOT_FOUND => Err(Failed::ForGood(missing(key))),
            status => Err(refused(key, status, answer).await),
        }
    }
}

impl Store for OverMesh {
    fn get<'a>(&'a self, key: &'a str, len_max: u64) -> BoxFuture<'a, Result<Bytes, Failure>> {
        Box::pin(async move { Ok(self.fetch(key, len_max, To::Memory).await?.into()) })
    }

    fn file<'a>(
        &'a self,
        key: &'a str,
        len_max: u64,
        scratch: &'a Path,
    ) -> BoxFuture<'a, Result<PathBuf, Failure>> {
        Box::pin(async move {
            self.fetch(key, len_max, To::File(scratch)).await?;
            Ok(scratch.to_owned())
        })
    }
}

/// The whole of a file, as long as it comes and is no longer than it may be.
async fn body(
    key: &str,
    answer: Answer,
    len_max: u64,
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<(), Failed> {
    let (parts, mut incoming, connection) = answer.into_parts();
    let announced = parts.headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
    let Some(len) = announced else {
        return Err(Failed::Now(
            "the answer does not say how long it is".to_owned(),
        ));
    };
    if len > len_max {
        return Err(Failed::ForGood(too_long(key, len, len_max)));
    }
    let unwritten = |error| Failed::ForGood(failure(format!("{key} cannot be kept: {error}")));
    loop {
        let frame = tokio::time::timeout(STALLED_MAX, incoming.frame()).await;
        let frame = frame.map_err(|_| Failed::Now("it has stopped coming".to_owned()))?;
        match frame {
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                to.write_all(&data).await.map_err(unwritten)?;
            }
            Some(Err(error)) => return Err(Failed::Now(chain(&error).to_string())),
            // The protocol has seen to it that it is as long as announced.
            None => {
                connection.keep();
                return to.flush().await.map_err(unwritten);
            }
        }
    }
}

/// What a refusal means: too much at a time passes, what is forbidden stays so.
async fn refused(key: &str, status: StatusCode, answer: Answer) -> Failed {
    let told = answer.whole(PROBLEM_LEN_MAX).await;
    let told = told.map(|(_, bytes)| bytes).unwrap_or_default();
    let problem = Problem::of_answer(status.as_u16(), &told);
    let why = format!("{} ({})", problem.detail, problem.code.as_str());
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        Failed::Now(why)
    } else {
        Failed::ForGood(failure(format!("{key} is refused: {why}")))
    }
}
