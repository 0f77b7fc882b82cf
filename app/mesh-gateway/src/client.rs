//! Asks the gateway of a process on this machine, over its socket.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::Full;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tabbify_api::Problem;
use tabbify_api::device::{
    Connection, DEVICES_PATH, Device, DeviceOrder, DeviceRemoval, REMOVE_PATH,
};
use tabbify_http::{Again, AnswerError};
use tabbify_process::Tasks;
use tabbify_process::connect::Connect;

use crate::service::STATS_PATH;
use crate::stats::Stats;

/// LIMIT: how long the head of an answer may take: an event is written for it.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// LIMIT: bytes of an answer: the list of all devices.
const ANSWER_LEN_MAX: usize = 16 * 1024 * 1024;

/// Why the gateway does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum AskFailed {
    /// It does not answer.
    #[error("the gateway does not answer")]
    Answer(#[source] AnswerError),
    /// It answers with something else.
    #[error("the gateway's answer cannot be understood")]
    Shape(#[source] serde_json::Error),
    /// It refuses.
    #[error("{}", said(.0))]
    Refused(Box<Problem>),
}

fn said(problem: &Problem) -> String {
    let what = match problem.detail.as_str() {
        "" => &problem.title,
        detail => detail,
    };
    match &problem.fix {
        Some(fix) => format!("{what}. {fix}"),
        None => what.to_owned(),
    }
}

/// The client.
#[derive(Debug, Clone)]
pub struct Client(tabbify_http::Client);

impl Client {
    /// Reaches the gateway over `connect`; its connections end with `tasks`.
    #[must_use]
    pub fn new(connect: Arc<dyn Connect>, tasks: &Tasks) -> Self {
        let name = "gateway client";
        Self(tabbify_http::Client::new(
            name,
            connect,
            ANSWER_WITHIN,
            tasks,
        ))
    }

    /// Adds a device; what its client is to be told.
    ///
    /// # Errors
    /// [`AskFailed`].
    pub async fn add(&self, order: &DeviceOrder) -> Result<Connection, AskFailed> {
        // Twice is once.
        self.post(DEVICES_PATH, order, Again::Harmless).await
    }

    /// Takes a device away; as it was.
    ///
    /// # Errors
    /// [`AskFailed`].
    pub async fn remove(&self, removal: &DeviceRemoval) -> Result<Device, AskFailed> {
        self.post(REMOVE_PATH, removal, Again::Never).await
    }

    /// Every device.
    ///
    /// # Errors
    /// [`AskFailed`].
    pub async fn devices(&self) -> Result<Vec<Device>, AskFailed> {
        let again = Again::Harmless;
        self.ask(Method::GET, DEVICES_PATH, Bytes::new(), again)
            .await
    }

    /// The gateway's counters.
    ///
    /// # Errors
    /// [`AskFailed`].
    pub async fn stats(&self) -> Result<Stats, AskFailed> {
        let again = Again::Harmless;
        self.ask(Method::GET, STATS_PATH, Bytes::new(), again).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &'static str,
        body: &impl Serialize,
        again: Again,
    ) -> Result<T, AskFailed> {
        let body = serde_json::to_vec(body).map_err(AskFailed::Shape)?;
        self.ask(Method::POST, path, Bytes::from(body), again).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &'static str,
        body: Bytes,
        again: Again,
    ) -> Result<T, AskFailed> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = http::Uri::from_static(path);
        let host = HeaderValue::from_static("gateway");
        request.headers_mut().insert(header::HOST, host);
        let answered = self.0.ask(request, again, ANSWER_LEN_MAX).await;
        let (parts, bytes) = answered.map_err(AskFailed::Answer)?;
        if !parts.status.is_success() {
            let problem = Problem::of_answer(parts.status.as_u16(), &bytes);
            return Err(AskFailed::Refused(Box::new(problem)));
        }
        serde_json::from_slice(&bytes).map_err(AskFailed::Shape)
    }
}
