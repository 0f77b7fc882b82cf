//! The platform's own paths: which there are, who may, and the handlers (one file per subject).

pub(crate) mod apps;
pub(crate) mod attach;
pub(crate) mod auth;
pub(crate) mod body;
pub(crate) mod commit;
pub(crate) mod deploys;
pub(crate) mod events;
pub(crate) mod files;
pub(crate) mod logs;
pub(crate) mod machines;
mod ndjson;
pub(crate) mod query;
pub(crate) mod secrets;
pub(crate) mod stored;
pub(crate) mod versions;
pub(crate) mod volumes;

use std::sync::Arc;

use http::request::Parts;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use tabbify_api::apps::Health;
use tabbify_api::artifact::ArtifactPath;
use tabbify_api::auth::{JWKS_PATH, TOKEN_PATH, Verified, WHOAMI_PATH, issue};
use tabbify_api::log::{Append, AppendError, Appended};
use tabbify_types::{AppId, DeployId, HostName, NewEvent, RequestId, SecretName, VersionNumber};

use self::query::Query;
use crate::answer::{self, Answer};
use crate::authn;
use crate::error::Refusal;
use crate::leash::Leash;
use crate::listen::Caller;
use crate::node::Node;
use crate::view::{App, View};

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
enum Endpoint {
    Health,
    Token,
    Jwks,
    Whoami,
    Apps,
    App(AppId),
    Versions(AppId),
    File(AppId, VersionNumber, ArtifactPath),
    Commit(AppId, VersionNumber),
    Open(AppId),
    Logs(AppId),
    Exec(AppId),
    Port(AppId, u16),
    Volumes(AppId),
    Volume(AppId, HostName),
    Deploys,
    Deploy(DeployId),
    Events,
    Machines,
    Secrets,
    Secret(SecretName),
}

/// What every handler gets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) node: &'a Arc<Node>,
    pub(crate) parts: &'a Parts,
    request: RequestId,
}

impl Call<'_> {
    /// The caller, whatever they may do.
    fn known(&self) -> Result<Verified, Refusal> {
        authn::caller(&*self.node.tokens, &self.parts.headers)
    }

    /// The caller, if they may do what `scope` names in their whole tenant.
    fn caller(&self, scope: &'static str) -> Result<Verified, Refusal> {
        let known = self.known()?;
        may(&known, scope)?;
        Ok(known)
    }

    /// The caller, if they may do what `scope` names with `app`.
    fn caller_on(&self, scope: &'static str, app: AppId) -> Result<Verified, Refusal> {
        let known = self.known()?;
        may_on(&known, scope, app)?;
        Ok(known)
    }

    /// The caller as their token, for a service that asks for itself who that is.
    fn bearer(&self) -> Result<issue::Caller<'_>, Refusal> {
        let token = authn::token(&self.parts.headers)?;
        Ok(issue::Caller::bearer(token))
    }

    /// What ends with the caller's token.
    fn leash(&self, known: Verified) -> Leash {
        Leash::of(&self.node.tokens, Some(known))
    }

    fn query(&self, known: &[&str]) -> Result<Query, Refusal> {
        Query::parse(self.parts.uri.query(), known)
    }

    /// Looks at an app of the caller's tenant; those of others do not exist.
    pub(crate) fn app<T>(
        &self,
        known: &Verified,
        app: AppId,
        look: impl FnOnce(&App) -> T,
    ) -> Result<T, Refusal> {
        self.app_in_view(known, app, |_, app| look(app))
    }

    /// The same, with everything else that the node knows.
    pub(crate) fn app_in_view<T>(
        &self,
        known: &Verified,
        app: AppId,
        look: impl FnOnce(&View, &App) -> T,
    ) -> Result<T, Refusal> {
        let found = self.node.projection.read(|view| {
            let app = view.app(app).filter(|app| app.tenant == known.tenant)?;
            Some(look(view, app))
        });
        found.ok_or_else(|| Refusal::UnknownApp(app.to_string()))
    }

    /// Appends a batch in the caller's name, marked with this request's trace. An error is the
    /// log's own no, which the handler knows how to read.
    async fn append(&self, caller: &Verified, mut batch: Append) -> Result<Appended, AppendError> {
        let trace = self.trace();
        for event in &mut batch.events {
            event.trace = Some(trace.clone());
        }
        self.node.writers.of(&caller.identity()).append(batch).await
    }

    /// Waits until the view has what was just appended: callers read their own writes.
    async fn seen(&self, appended: &Appended) -> Result<(), Refusal> {
        let within = self.node.config.timeouts.view;
        self.node.projection.wait_for(appended.last, within).await
    }

    /// Waits until the view has everything that is in the log now.
    async fn up_to_date(&self) -> Result<(), Refusal> {
        let within = self.node.config.timeouts.view;
        self.node
            .projection
            .wait_for(self.node.log.head(), within)
            .await
    }

    /// The caller's `traceparent` if it is one (W3C Trace Context 3.2), else one of our own with the
    /// request's id as trace id, so that a log line leads to the events.
    fn trace(&self) -> String {
        let given = self
            .parts
            .headers
            .get("traceparent")
            .and_then(|value| value.to_str().ok());
        if let Some(given) = given.filter(|given| is_traceparent(given)) {
            return given.to_owned();
        }
        let id = self.request.uuid().simple().to_string();
        format!("00-{id}-{}-01", &id[16..])
    }
}

fn is_traceparent(text: &str) -> bool {
    let lens = [2, 32, 16, 2];
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let mut parts = text.split('-');
    text.starts_with("00-")
        && lens.iter().all(|len| {
            parts
                .next()
                .is_some_and(|part| part.len() == *len && part.bytes().all(hex))
        })
        && parts.next().is_none()
}

/// Answers a request to the platform itself.
///
/// # Errors
/// Whatever the handler says; [`Refusal::NotFound`] and [`Refusal::MethodNotAllowed`] here.
pub(crate) async fn serve(
    node: &Arc<Node>,
    caller: &Caller,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Answer, Refusal> {
    let call = Call {
        node,
        parts,
        request: caller.request,
    };
    let endpoint = endpoint(parts.uri.path())?;
    // HEAD is GET without the body, which hyper leaves out.
    let method = match parts.method {
        Method::HEAD => Method::GET,
        ref method => method.clone(),
    };
    let allowed = methods(&endpoint);
    if !allowed
        .split(", ")
        .any(|allowed| allowed == method.as_str())
    {
        return Err(Refusal::MethodNotAllowed(allowed));
    }
    let reads = method == Method::GET;
    match endpoint {
        Endpoint::Health => Ok(health(node)),
        Endpoint::Token => auth::token(call, body).await,
        Endpoint::Jwks => Ok(auth::jwks(call)),
        Endpoint::Whoami => auth::whoami(call),
        Endpoint::Apps if reads => apps::list(call),
        Endpoint::Apps => apps::register(call, body).await,
        Endpoint::App(app) => apps::get(call, app),
        Endpoint::Versions(app) => versions::reserve(call, body, app).await,
        Endpoint::File(app, version, path) => files::put(call, body, app, version, path).await,
        Endpoint::Commit(app, version) => commit::commit(call, body, app, version).await,
        Endpoint::Open(app) => auth::open(call, app).await,
        Endpoint::Logs(app) => logs::read(call, app).await,
        Endpoint::Exec(app) => attach::exec(call, body, app).await,
        Endpoint::Volumes(app) => volumes::list(call, app).await,
        Endpoint::Volume(app, machine) => volumes::remove(call, app, machine).await,
        Endpoint::Port(app, port) => attach::port(call, caller, app, port).await,
        Endpoint::Deploys if reads => deploys::list(call),
        Endpoint::Deploys => deploys::request(call, body).await,
        Endpoint::Deploy(deploy) => deploys::wait(call, deploy).await,
        Endpoint::Events => events::read(call),
        Endpoint::Machines => machines::list(call),
        Endpoint::Secrets => secrets::list(call).await,
        Endpoint::Secret(name) if method == Method::PUT => secrets::set(call, body, name).await,
        Endpoint::Secret(name) => secrets::remove(call, name).await,
    }
}

fn endpoint(path: &str) -> Result<Endpoint, Refusal> {
    let unknown = || Refusal::NotFound(path.chars().take(80).collect());
    let app = |text: &str| {
        let bad = || Refusal::BadUuid(text.chars().take(80).collect());
        text.parse::<AppId>().map_err(|_| bad())
    };
    let version = |text: &str| match text.parse() {
        Ok(VersionNumber(0)) | Err(_) => Err(unknown()),
        Ok(version) => Ok(version),
    };
    match path {
        "/health" => return Ok(Endpoint::Health),
        TOKEN_PATH => return Ok(Endpoint::Token),
        JWKS_PATH => return Ok(Endpoint::Jwks),
        WHOAMI_PATH => return Ok(Endpoint::Whoami),
        _ => {}
    }
    let rest = path.strip_prefix("/v1/").ok_or_else(unknown)?;
    let parts: Vec<&str> = rest.splitn(6, '/').collect();
    match parts.as_slice() {
        ["apps"] => Ok(Endpoint::Apps),
        ["apps", id] => Ok(Endpoint::App(app(id)?)),
        ["apps", id, "versions"] => Ok(Endpoint::Versions(app(id)?)),
        ["apps", id, "open"] => Ok(Endpoint::Open(app(id)?)),
        ["apps", id, "logs"] => Ok(Endpoint::Logs(app(id)?)),
        ["apps", id, "exec"] => Ok(Endpoint::Exec(app(id)?)),
        ["apps", id, "volumes"] => Ok(Endpoint::Volumes(app(id)?)),
        ["apps", id, "volumes", machine] => {
            let machine = machine.parse().map_err(|_| unknown())?;
            Ok(Endpoint::Volume(app(id)?, machine))
        }
        ["apps", id, "ports", port] => {
            let port: u16 = port.parse().map_err(|_| unknown())?;
            Ok(Endpoint::Port(app(id)?, port))
        }
        ["apps", id, "versions", n, "commit"] => Ok(Endpoint::Commit(app(id)?, version(n)?)),
        ["apps", id, "versions", n, "files", file] => {
            let text = percent_decode_str(file).decode_utf8();
            let text = text.map_err(|_| Refusal::BadRequest("the path is not UTF-8".to_owned()))?;
            let path = text.parse::<ArtifactPath>();
            let path = path.map_err(|error| Refusal::BadRequest(error.to_string()))?;
            Ok(Endpoint::File(app(id)?, version(n)?, path))
        }
        ["deploys"] => Ok(Endpoint::Deploys),
        ["deploys", id] => {
            let bad = |_| Refusal::BadUuid(id.chars().take(80).collect());
            Ok(Endpoint::Deploy(id.parse().map_err(bad)?))
        }
        ["events"] => Ok(Endpoint::Events),
        ["machines"] => Ok(Endpoint::Machines),
        ["secrets"] => Ok(Endpoint::Secrets),
        ["secrets", name] => {
            // What does not parse may be a value by mistake: it is not repeated.
            let wrong = |_| Refusal::BadRequest("the path has no name of a secret".to_owned());
            Ok(Endpoint::Secret(name.parse().map_err(wrong)?))
        }
        _ => Err(unknown()),
    }
}

const fn methods(endpoint: &Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Health
        | Endpoint::Jwks
        | Endpoint::Whoami
        | Endpoint::App(_)
        | Endpoint::Logs(_)
        | Endpoint::Port(..)
        | Endpoint::Volumes(_)
        | Endpoint::Deploy(_)
        | Endpoint::Events
        | Endpoint::Machines
        | Endpoint::Secrets => "GET",
        Endpoint::Apps | Endpoint::Deploys => "GET, POST",
        Endpoint::Token
        | Endpoint::Versions(_)
        | Endpoint::Commit(..)
        | Endpoint::Open(_)
        | Endpoint::Exec(_) => "POST",
        Endpoint::File(..) => "PUT",
        Endpoint::Secret(_) => "PUT, DELETE",
        Endpoint::Volume(..) => "DELETE",
    }
}

fn health(node: &Node) -> Answer {
    let away = node.projection.away(node.clock.now());
    let health = Health {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        platform: node.authority.platform().0,
        position: node.projection.position(),
        log_away_s: away.map(|away| away.as_secs()),
    };
    answer::json(StatusCode::OK, &health)
}

/// # Errors
/// [`Refusal::Scope`].
fn may(known: &Verified, scope: &'static str) -> Result<(), Refusal> {
    match known.allows(scope) {
        true => Ok(()),
        false => Err(Refusal::Scope(scope)),
    }
}

/// As [`may`], where a scope for this app alone does as well.
fn may_on(known: &Verified, scope: &'static str, app: AppId) -> Result<(), Refusal> {
    match known.allows_on(scope, app) {
        true => Ok(()),
        false => Err(Refusal::Scope(scope)),
    }
}

/// An event of ours, or why it cannot be one.
fn event(made: Result<NewEvent, tabbify_types::event::EventError>) -> Result<NewEvent, Refusal> {
    made.map_err(Refusal::Event)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tabbify_api::machines::MACHINES_PATH;

    use super::*;

    const APP: &str = "0191e7c2-1111-7222-8333-444455556666";

    #[test]
    fn endpoints() {
        let app: AppId = APP.parse().unwrap();
        let deploy: DeployId = APP.parse().unwrap();
        let at = |path: &str| endpoint(&path.replace("ID", APP));
        let found = |path: &str| at(path).unwrap();
        assert_eq!(found("/health"), Endpoint::Health);
        assert_eq!(found("/v1/auth/token"), Endpoint::Token);
        assert_eq!(found("/v1/apps"), Endpoint::Apps);
        assert_eq!(found("/v1/apps/ID"), Endpoint::App(app));
        assert_eq!(found("/v1/apps/ID/versions"), Endpoint::Versions(app));
        let seven = VersionNumber(7);
        assert_eq!(
            found("/v1/apps/ID/versions/7/commit"),
            Endpoint::Commit(app, seven)
        );
        let file = |path: &str| Endpoint::File(app, seven, path.parse().unwrap());
        assert_eq!(
            found("/v1/apps/ID/versions/7/files/a/b%20c.css"),
            file("a/b c.css")
        );
        assert_eq!(
            found("/v1/apps/ID/versions/7/files/a/files/commit"),
            file("a/files/commit")
        );
        assert_eq!(found("/v1/deploys/ID"), Endpoint::Deploy(deploy));
        assert_eq!(found("/v1/events"), Endpoint::Events);
        assert_eq!(found(MACHINES_PATH), Endpoint::Machines);
        let refused = |path: &str, code: &str| {
            assert_eq!(at(path).unwrap_err().code().as_str(), code, "{path}");
        };
        refused("/", "not_found");
        refused("/v1", "not_found");
        refused("/v1/apps/", "bad_uuid");
        refused("/v1/apps/nope", "bad_uuid");
        refused("/v1/apps/nope/logs", "bad_uuid");
        refused("/v1/deploys/nope", "bad_uuid");
        refused("/v1/apps/ID/versions/0/commit", "not_found");
        refused("/v1/apps/ID/versions/x/commit", "not_found");
        refused("/v1/apps/ID/versions/7/files/..%2f..%2fx", "bad_request");
        refused("/v1/apps/ID/versions/7/files/%ff", "bad_request");
        refused("/v1/apps/ID/versions/7/files/", "bad_request");
        refused("/v1/apps/ID/nothing", "not_found");
        assert_eq!(found("/v1/secrets"), Endpoint::Secrets);
        let name: SecretName = "api-key".parse().unwrap();
        assert_eq!(found("/v1/secrets/api-key"), Endpoint::Secret(name));
        refused("/v1/secrets/", "bad_request");
        refused("/v1/secrets/..", "bad_request");
        refused("/v1/secrets/a%2fb", "bad_request");
        refused("/v1/secrets/a/b", "not_found");
    }

    #[test]
    fn traceparents() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_traceparent(good));
        for bad in [
            "",
            "00",
            &good[1..],
            &good.to_uppercase(),
            &format!("{good}-x"),
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_answered(path in "/\\PC{0,60}") {
            let _ = endpoint(&path);
            let _ = is_traceparent(&path);
        }
    }
}
