//! Who tcli is: credentials from flags, environment or contexts.toml, and short tokens for them.
//!
//! With an owner key, tcli signs a proof for the platform, exchanges it for a 15-minute token and
//! keeps that in the user's cache (0600), renewed when less than a minute is left or when the
//! platform says that it has expired. Neither key nor token is ever shown or passed to a build.

use std::cell::RefCell;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tabbify_api::apps::Health;
use tabbify_api::auth::{IssuedToken, TOKEN_PATH, TokenRequest};
use tabbify_api::contexts::{CONTEXTS_LEN_MAX, Context, Contexts, contexts_path};
use tabbify_token::{OwnerProof, PlatformId, SecretKey};
use tabbify_types::{RequestId, SigningKeyId};
use ureq::http::Method;

use crate::args::Global;
use crate::env::{Environment, SERVER, TOKEN};
use crate::error::{Code, Failure, Result};
use crate::http::{Http, Payload, RETRIES_MAX, Repeat, Request};
use crate::server::{self, Server};
use crate::{clock, files};

/// A token with less life left is renewed before it is used.
const LEFT_MIN: Duration = Duration::from_secs(60);
/// LIMIT: a cached token file, in bytes.
const CACHE_LEN_MAX: usize = 16 * 1024;
/// LIMIT: a key file, in bytes.
const KEY_LEN_MAX: usize = 1024;

/// What signs in.
enum Credential {
    /// A token that somebody gave us; it cannot be renewed.
    Token(String),
    /// The key of a context, by the context's name.
    Key { name: String, context: Context },
    /// Nothing.
    None,
}

/// Where to go and as whom.
pub(crate) struct Session {
    pub(crate) server: Server,
    credential: Credential,
    /// Below which tokens are kept between two runs.
    cache: Option<PathBuf>,
    token: RefCell<Option<IssuedToken>>,
}

/// A token in the cache, with all that it depends on.
#[derive(Serialize, Deserialize)]
struct Cached {
    server: String,
    subject: String,
    #[serde(flatten)]
    token: IssuedToken,
}

impl Session {
    /// Chooses server and credentials; asks nobody. Flags come first, then the environment, then
    /// the contexts file, which is read only if these leave something open.
    pub(crate) fn choose(global: &Global, env: &Environment) -> Result<Self> {
        let flag = given(global.server.as_deref(), "--server")?;
        let variable = given(env.server.as_deref(), &format!("${SERVER}"))?;
        let named = global.context.as_deref();
        let asked = match (flag, named) {
            (Some(flag), _) => Some(flag),
            // A context that is named brings its own server along.
            (None, Some(_)) => None,
            (None, None) => variable,
        };
        let given_token = env.token.as_ref().filter(|_| named.is_none());
        let contexts = match (&asked, given_token) {
            (Some(_), Some(_)) => Contexts::default(),
            _ => read_contexts(env)?,
        };
        let found = match (named, &asked) {
            (Some(name), _) => Some(
                contexts
                    .get(name)
                    .ok_or_else(|| no_context(name, &contexts))?,
            ),
            (None, Some(server)) => contexts.of_server(server.as_str()),
            (None, None) => contexts.current(),
        };
        let server = match (asked, found) {
            (Some(server), _) => server,
            (None, Some((name, context))) => {
                parse_server(&context.server, &format!("context {name} of contexts.toml"))?
            }
            (None, None) => parse_server(server::DEFAULT, "the default")?,
        };
        let credential = match (given_token, found) {
            (Some(token), _) => Credential::Token(token.clone()),
            (None, Some((name, context))) => Credential::Key {
                name: name.to_owned(),
                context: context.clone(),
            },
            (None, None) => Credential::None,
        };
        let (cache, token) = (cache_dir(env), RefCell::new(None));
        Ok(Self {
            server,
            credential,
            cache,
            token,
        })
    }

    /// The platform that the credentials are for, if they say.
    pub(crate) fn platform(&self) -> Option<&SigningKeyId> {
        match &self.credential {
            Credential::Key { context, .. } => Some(&context.platform),
            Credential::Token(_) | Credential::None => None,
        }
    }

    /// The token to send; signs in if there is none with enough life left. `None` if there is
    /// nothing to sign in with: the platform then says what it thinks of that.
    pub(crate) fn token(&self, http: &Http) -> Result<Option<String>> {
        let (name, context) = match &self.credential {
            Credential::Token(token) => return Ok(Some(token.clone())),
            Credential::None => return Ok(None),
            Credential::Key { name, context } => (name, context),
        };
        let usable = |token: &IssuedToken| token.expires > clock::now().plus(LEFT_MIN);
        let held = self.token.borrow().clone().or_else(|| self.cached(context));
        let token = match held.filter(usable) {
            Some(token) => token,
            None => self.sign_in(http, name, context)?,
        };
        self.token.replace(Some(token.clone()));
        Ok(Some(token.token))
    }

    /// Forgets a token that the platform refused; whether another can be had.
    pub(crate) fn forget(&self) -> bool {
        let Credential::Key { context, .. } = &self.credential else {
            return false;
        };
        self.token.replace(None);
        if let Some(path) = self.cache_path(context) {
            // If it cannot be removed it is replaced by the next one.
            let _ = fs::remove_file(path);
        }
        true
    }

    /// Why the platform does not know us, and what to do about it.
    pub(crate) fn refused(&self, detail: &str) -> Failure {
        let host = self.server.as_str().trim_start_matches("http://");
        let detail = detail.trim_end_matches('.');
        let (why, fix) = match &self.credential {
            Credential::None => (
                format!("no credentials for it in ${TOKEN} or contexts.toml"),
                "Run: tabbify up (on the platform's machine, it signs you in), or set TABBIFY_TOKEN"
                    .to_owned(),
            ),
            Credential::Token(_) => {
                (format!("${TOKEN}: {detail}"), format!("Set a new one, or run: unset {TOKEN}"))
            }
            Credential::Key { name, context } => (
                format!("{detail} (context {name}, key {})", context.owner_key.display()),
                "Run: tabbify up".to_owned(),
            ),
        };
        Failure::new(
            Code::NotSignedIn,
            format!("Not signed in to {host}: {why}."),
        )
        .fix(fix)
    }

    fn sign_in(&self, http: &Http, name: &str, context: &Context) -> Result<IssuedToken> {
        let key = read_key(&context.owner_key)?;
        let platform = context.platform.as_str().parse::<PlatformId>();
        let platform = platform.expect("a platform's id has the form of a key's id");
        let mut retries = 0;
        let answer = loop {
            // Each attempt has its own proof: a proof that was heard counts no second time.
            let jti = RequestId::mint().to_string();
            let proof = OwnerProof::new(platform.clone(), &context.subject, &jti, clock::now());
            let proof = proof.sign(&key).map_err(|error| {
                let what = format!("Context {name} of contexts.toml cannot sign in: {error}.");
                Failure::new(Code::Credentials, what)
            })?;
            let body = serde_json::to_vec(&TokenRequest { proof }).expect("text is JSON");
            let request = Request {
                method: Method::POST,
                path: TOKEN_PATH.to_owned(),
                payload: Payload::Json(body),
                repeat: Repeat::Never,
                wait: Duration::ZERO,
            };
            match http.exchange(&request, None) {
                Err(failure)
                    if failure.code == Code::Interrupted.as_str() && retries < RETRIES_MAX =>
                {
                    retries += 1;
                }
                answer => break answer?,
            }
        };
        if answer.status == 401 {
            return Err(self.refused_key(
                http,
                name,
                context,
                &crate::client::detail_of(answer, http)?,
            ));
        }
        let token: IssuedToken = crate::client::accepted(answer, http)?.json(http)?;
        self.keep(context, &token);
        Ok(token)
    }

    /// A key that the platform refuses: most often it is another platform than the context's.
    fn refused_key(&self, http: &Http, name: &str, context: &Context, detail: &str) -> Failure {
        let health = http.exchange(&Request::get("/health"), None);
        let health = health.and_then(|answer| answer.json::<Health>(http));
        match health {
            Ok(health) if health.platform != context.platform.as_str() => {
                let what = format!(
                    "Not signed in to {}: it is platform {}, and context {name} is for {}.",
                    self.server.as_str().trim_start_matches("http://"),
                    health.platform,
                    context.platform.as_str(),
                );
                Failure::new(Code::NotSignedIn, what)
                    .fix("Was it set up anew? Run: tabbify up (it writes the context)")
            }
            _ => self.refused(detail),
        }
    }

    fn cache_path(&self, context: &Context) -> Option<PathBuf> {
        let file = format!("token-{}.json", context.platform.as_str());
        Some(self.cache.as_ref()?.join(file))
    }

    /// A cached token, if it is for this server and subject and nobody else could read it.
    fn cached(&self, context: &Context) -> Option<IssuedToken> {
        let path = self.cache_path(context)?;
        if fs::metadata(&path).ok()?.mode() & 0o077 != 0 {
            return None;
        }
        let text = files::read_text(&path, CACHE_LEN_MAX).ok()??;
        let cached: Cached = serde_json::from_str(&text).ok()?;
        let ours = cached.server == self.server.as_str() && cached.subject == context.subject;
        ours.then_some(cached.token)
    }

    /// Keeps a token for the next run. It is a cache: without it the next run signs in again.
    fn keep(&self, context: &Context, token: &IssuedToken) {
        let Some(path) = self.cache_path(context) else {
            return;
        };
        let cached = Cached {
            server: self.server.to_string(),
            subject: context.subject.clone(),
            token: token.clone(),
        };
        let bytes = serde_json::to_vec(&cached).expect("text is JSON");
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory);
        let _ = made.and_then(|()| files::replace(&path, &bytes, 0o600));
    }
}

fn given(text: Option<&str>, origin: &str) -> Result<Option<Server>> {
    text.map(|text| parse_server(text, origin)).transpose()
}

fn parse_server(text: &str, origin: &str) -> Result<Server> {
    text.parse::<Server>().map_err(|error| {
        Failure::new(Code::Usage, format!("{} ({origin}).", error.what))
            .fix(format!("{}.", error.fix))
    })
}

fn no_context(name: &str, contexts: &Contexts) -> Failure {
    let names: Vec<&str> = contexts.context.keys().map(String::as_str).collect();
    let there = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    let what = format!("contexts.toml has no context {name:?}; it has: {there}.");
    Failure::new(Code::Credentials, what)
        .fix(format!("Use one of these, or --server or ${SERVER}."))
}

fn read_contexts(env: &Environment) -> Result<Contexts> {
    let path = contexts_path(env.config_home.as_deref(), env.home.as_deref());
    let Some(path) = path else {
        return Ok(Contexts::default());
    };
    let text = files::read_text(&path, CONTEXTS_LEN_MAX);
    let text = text.map_err(|error| Failure::file("read", &path, &error))?;
    let Some(text) = text else {
        return Ok(Contexts::default());
    };
    Contexts::parse(&text).map_err(|error| {
        let source = std::error::Error::source(&error);
        let cause = source
            .map(|source| format!(": {source}"))
            .unwrap_or_default();
        let what = format!(
            "Cannot use {}: {error}{}.",
            path.display(),
            cause.trim_end()
        );
        Failure::new(Code::Credentials, what).fix("Mend or remove it; tabbify up writes a new one.")
    })
}

/// Reads a key that nobody else may read.
fn read_key(path: &Path) -> Result<SecretKey> {
    let shown = path.display();
    let failure = |what: String| Failure::new(Code::Credentials, what);
    let mode = fs::metadata(path).map(|metadata| metadata.mode() & 0o777);
    match mode {
        Ok(mode) if mode & 0o077 != 0 => {
            let what = format!("Others can read your key {shown} (mode {mode:04o}).");
            return Err(failure(what).fix(format!("Run: chmod 600 {shown}")));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let what = format!("Your key {shown} is gone, and contexts.toml names it.");
            return Err(failure(what).fix("Was the platform set up anew? Run: tabbify up"));
        }
        Err(error) => return Err(failure(format!("Cannot read your key {shown}: {error}."))),
    }
    let text = files::read_text(path, KEY_LEN_MAX);
    let text = text.map_err(|error| failure(format!("Cannot read your key {shown}: {error}.")))?;
    SecretKey::from_text(&text.unwrap_or_default())
        .map_err(|error| failure(format!("Cannot use your key {shown}: {error}.")))
}

fn cache_dir(env: &Environment) -> Option<PathBuf> {
    let absolute = |path: &PathBuf| path.is_absolute();
    let cache_home = env.cache_home.clone().filter(absolute);
    let home = env.home.clone().filter(absolute);
    Some(
        cache_home
            .or_else(|| Some(home?.join(".cache")))?
            .join("tabbify"),
    )
}
