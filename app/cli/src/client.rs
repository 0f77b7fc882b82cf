//! The node's contract as methods, signed in: `tabbify_api::apps` and `auth`, one method a line of
//! their tables.

use std::cell::OnceCell;
use std::io::Read;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use tabbify_api::apps::{
    AppList, AppView, CommitVersion, Health, OpenLink, Operation, RegisterApp, RequestDeploy,
    ReserveVersion, ReservedVersion, VersionView,
};
use tabbify_api::artifact::ArtifactPath;
use tabbify_api::attach::RunCommand;
use tabbify_api::auth::{Identity, WHOAMI_PATH};
use tabbify_api::error::ErrorCode;
use tabbify_api::machines::{MACHINES_PATH, MachineList, MachineView};
use tabbify_api::secrets::{SECRETS_PATH, SecretList, SecretView};
use tabbify_api::volumes::VolumeList;
use tabbify_types::{AppId, DeployId, HostName, SecretName, SigningKeyId, VersionNumber};
use ureq::http::Method;

use crate::error::{Code, Exit, Failure, Result, exit_of};
use crate::http::{Answer, Http, Payload, Repeat, Request};
use crate::server::Server;
use crate::signin::Session;

/// What a part of a path must not contain (RFC 3986 section 3.3), `/` left to separate parts.
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A signed-in way to one platform.
pub(crate) struct Client {
    http: Http,
    session: Session,
    platform: OnceCell<SigningKeyId>,
}

impl Client {
    pub(crate) fn new(session: Session) -> Self {
        Self {
            http: Http::new(session.server.clone()),
            session,
            platform: OnceCell::new(),
        }
    }

    /// Which platform it is, by the id that its lock entries and tokens carry. A platform keeps it
    /// under every URL, and a new platform under an old URL has another.
    pub(crate) fn platform(&self) -> Result<&SigningKeyId> {
        if let Some(known) = self.session.platform().or_else(|| self.platform.get()) {
            return Ok(known);
        }
        let answer = self.http.exchange(&Request::get("/health"), None)?;
        let health: Health = accepted(answer, &self.http)?.json(&self.http)?;
        let id = health.platform.parse().map_err(|error| {
            let what = format!(
                "{} does not say which platform it is: {error}.",
                self.server()
            );
            Failure::new(Code::BadAnswer, what)
        })?;
        Ok(self.platform.get_or_init(|| id))
    }

    pub(crate) fn server(&self) -> &Server {
        self.http.server()
    }

    pub(crate) fn whoami(&self) -> Result<Identity> {
        self.call(&Request::get(WHOAMI_PATH))?.json(&self.http)
    }

    /// A token that the platform takes now; asks it, so that a stale one is renewed.
    pub(crate) fn token(&self) -> Result<String> {
        self.whoami()?;
        let token = self.session.token(&self.http)?;
        token.ok_or_else(|| self.session.refused("no token"))
    }

    pub(crate) fn apps(&self) -> Result<Vec<AppView>> {
        let list: AppList = self.call(&Request::get("/v1/apps"))?.json(&self.http)?;
        Ok(list.apps)
    }

    pub(crate) fn machines(&self) -> Result<Vec<MachineView>> {
        let list: MachineList = self.call(&Request::get(MACHINES_PATH))?.json(&self.http)?;
        Ok(list.machines)
    }

    pub(crate) fn secrets(&self) -> Result<Vec<SecretView>> {
        let list: SecretList = self.call(&Request::get(SECRETS_PATH))?.json(&self.http)?;
        Ok(list.secrets)
    }

    /// Not repeated: a second value is a second version.
    pub(crate) fn set_secret(&self, name: &SecretName, value: &[u8]) -> Result<SecretView> {
        let request = Request {
            method: Method::PUT,
            path: format!("{SECRETS_PATH}/{name}"),
            payload: Payload::Bytes(value),
            repeat: Repeat::Never,
            wait: Duration::ZERO,
        };
        self.call(&request)?.json(&self.http)
    }

    pub(crate) fn remove_secret(&self, name: &SecretName) -> Result<()> {
        let request = Request {
            method: Method::DELETE,
            path: format!("{SECRETS_PATH}/{name}"),
            payload: Payload::None,
            repeat: Repeat::Never,
            wait: Duration::ZERO,
        };
        self.call(&request).map(|_| ())
    }

    pub(crate) fn app(&self, app: AppId) -> Result<AppView> {
        self.call(&Request::get(format!("/v1/apps/{app}")))?
            .json(&self.http)
    }

    pub(crate) fn register(&self, request: &RegisterApp) -> Result<AppView> {
        self.post("/v1/apps".to_owned(), request, Repeat::Harmless)
    }

    /// Not repeated: a second reservation is a second number.
    pub(crate) fn reserve(&self, app: AppId, request: &ReserveVersion) -> Result<ReservedVersion> {
        self.post(format!("/v1/apps/{app}/versions"), request, Repeat::Never)
    }

    pub(crate) fn put_file(
        &self,
        app: AppId,
        version: VersionNumber,
        path: &ArtifactPath,
        payload: Payload<'_>,
    ) -> Result<()> {
        let path = utf8_percent_encode(path.as_str(), PATH);
        let request = Request {
            method: Method::PUT,
            path: format!("/v1/apps/{app}/versions/{version}/files/{path}"),
            payload,
            repeat: Repeat::Harmless,
            // The node writes the file to disk before it answers.
            wait: Duration::from_secs(60),
        };
        self.call(&request).map(|_| ())
    }

    pub(crate) fn commit(
        &self,
        app: AppId,
        version: VersionNumber,
        request: &CommitVersion,
    ) -> Result<VersionView> {
        let path = format!("/v1/apps/{app}/versions/{version}/commit");
        self.post(path, request, Repeat::Harmless)
    }

    pub(crate) fn open_link(&self, app: AppId) -> Result<OpenLink> {
        let request = Request {
            method: Method::POST,
            path: format!("/v1/apps/{app}/open"),
            payload: Payload::None,
            repeat: Repeat::Harmless,
            wait: Duration::ZERO,
        };
        self.call(&request)?.json(&self.http)
    }

    /// Repeating it deploys once: the id is ours.
    pub(crate) fn deploy(&self, request: &RequestDeploy) -> Result<Operation> {
        self.post("/v1/deploys".to_owned(), request, Repeat::Harmless)
    }

    /// The deploy, once it has moved on from `seen` steps or `wait` is over.
    pub(crate) fn operation(&self, id: DeployId, seen: usize, wait: Duration) -> Result<Operation> {
        let path = format!("/v1/deploys/{id}?wait_s={}&seen={seen}", wait.as_secs());
        let request = Request {
            wait,
            ..Request::get(path)
        };
        self.call(&request)?.json(&self.http)
    }

    /// The app's lines as NDJSON; `query` is `tail=&since=&follow=`.
    pub(crate) fn logs(&self, app: AppId, query: &str) -> Result<impl Read + use<>> {
        Ok(self
            .call(&Request::get(format!("/v1/apps/{app}/logs?{query}")))?
            .stream())
    }

    /// Runs a command in the app; its lines as NDJSON. Not repeated: twice is twice.
    pub(crate) fn exec(&self, app: AppId, command: &RunCommand) -> Result<impl Read + use<>> {
        let body = serde_json::to_vec(command).expect("the contract's shapes are JSON");
        let request = Request {
            method: Method::POST,
            path: format!("/v1/apps/{app}/exec"),
            payload: Payload::Json(body),
            repeat: Repeat::Never,
            wait: Duration::ZERO,
        };
        Ok(self.call(&request)?.stream())
    }

    /// Whether the app has this raw port, and we may connect to it: the platform says what is wrong with a
    /// request that connects to nothing, and of all that only that.
    pub(crate) fn check_port(&self, app: AppId, port: u16) -> Result<()> {
        match self.call(&Request::get(path_of_port(app, port))) {
            Err(failure) if failure.is(ErrorCode::BadRequest) => Ok(()),
            Err(failure) if failure.is(ErrorCode::NotFound) => Err(Failure {
                exit: Exit::Usage,
                ..failure
            }),
            Err(failure) => Err(failure),
            Ok(_) => Ok(()),
        }
    }

    pub(crate) fn volumes(&self, app: AppId) -> Result<VolumeList> {
        let path = tabbify_api::volumes::path_of(app);
        self.call(&Request::get(path))?.json(&self.http)
    }

    /// Not repeated: the volume of another instance may be there by then.
    pub(crate) fn remove_volume(&self, app: AppId, machine: &HostName) -> Result<()> {
        let request = Request {
            method: Method::DELETE,
            path: format!("{}/{machine}", tabbify_api::volumes::path_of(app)),
            payload: Payload::None,
            repeat: Repeat::Never,
            wait: Duration::from_secs(30),
        };
        self.call(&request).map(|_| ())
    }

    /// The tenant's events as NDJSON; `query` is `after=&segment=&type=&key=&follow=`.
    pub(crate) fn events(&self, query: &str) -> Result<impl Read + use<>> {
        Ok(self
            .call(&Request::get(format!("/v1/events?{query}")))?
            .stream())
    }

    fn post<Q: Serialize, A: for<'de> Deserialize<'de>>(
        &self,
        path: String,
        body: &Q,
        repeat: Repeat,
    ) -> Result<A> {
        let body = serde_json::to_vec(body).expect("the contract's shapes are JSON");
        let payload = Payload::Json(body);
        let request = Request {
            method: Method::POST,
            path,
            payload,
            repeat,
            wait: Duration::ZERO,
        };
        self.call(&request)?.json(&self.http)
    }

    /// Sends a request, signed in; signs in again once if the platform does not take the token.
    fn call(&self, request: &Request<'_>) -> Result<Answer> {
        let token = self.session.token(&self.http)?;
        let mut answer = self.http.exchange(request, token.as_deref())?;
        if answer.status == 401 && self.session.forget() {
            let token = self.session.token(&self.http)?;
            answer = self.http.exchange(request, token.as_deref())?;
        }
        if answer.status == 401 {
            return Err(self.session.refused(&detail_of(answer, &self.http)?));
        }
        accepted(answer, &self.http)
    }
}

/// Where the bytes of an app's raw port are.
pub(crate) fn path_of_port(app: AppId, port: u16) -> String {
    format!("/v1/apps/{app}/ports/{port}")
}

/// A problem document as any release of the platform writes it: `code` may be one we do not know.
#[derive(Deserialize)]
struct AnyProblem {
    code: String,
    title: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    fix: Option<String>,
    #[serde(default)]
    request: Option<String>,
}

/// The answer if it is a success, else the failure that it means.
pub(crate) fn accepted(answer: Answer, http: &Http) -> Result<Answer> {
    if answer.is_success() {
        return Ok(answer);
    }
    let (status, asked) = (answer.status, answer.asked.clone());
    let Ok(problem) = serde_json::from_str::<AnyProblem>(&answer.text(http)?) else {
        let server = http.server();
        let what = format!("{server} answers {status} to {asked}, and not as a Tabbify does.");
        let fix = "Name the right platform with --server, or start one: tabbify up";
        return Err(Failure::new(Code::BadAnswer, what).fix(fix));
    };
    Err(problem.into_failure(status))
}

/// What a refusal says.
pub(crate) fn detail_of(answer: Answer, http: &Http) -> Result<String> {
    let text = answer.text(http)?;
    let problem = serde_json::from_str::<AnyProblem>(&text);
    Ok(match problem {
        Ok(problem) if problem.detail.is_empty() => problem.title,
        Ok(problem) => problem.detail,
        Err(_) => "the answer is 401".to_owned(),
    })
}

impl AnyProblem {
    fn into_failure(self, status: u16) -> Failure {
        let known = ErrorCode::from_code(&self.code).map(exit_of);
        let by_status = if status < 500 {
            Exit::Usage
        } else {
            Exit::Platform
        };
        let exit = known.unwrap_or(by_status);
        let mut what = if self.detail.is_empty() {
            format!("{}.", self.title)
        } else {
            format!("{}: {}.", self.title, self.detail.trim_end_matches('.'))
        };
        if let (Exit::Platform, Some(request)) = (exit, self.request) {
            what.push_str(&format!(" (request {request})"));
        }
        Failure {
            exit,
            code: self.code,
            what,
            fix: self.fix,
            operation: None,
        }
    }
}
