//! `tabbify coordinator`: where machines join and ask who holds which address, over TLS. As a process of
//! its own on the log of a transaction-node; several of them, and a `tabbify up`, decide together.
//!
//! `tabbify invite` gives a machine a token that names the coordinator's key, and `tabbify join` makes it
//! a member with that.

use std::fmt;
use std::io::{IsTerminal as _, Read as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tabbify_api::BoxFuture;
use tabbify_api::auth::issue::{
    API_AUDIENCE, Admission, AdmitRequest, Caller, Issuer as _, RequestError, TokenOrder,
};
use tabbify_api::auth::scope;
use tabbify_api::auth::{Authority as _, IssuedToken};
use tabbify_api::log::EventLog;
use tabbify_auth::{Auth, IssuerKeys, Keys, OWNER};
use tabbify_coordinator::{
    Admit, Coordinator, Invited, Limits, MeshSecret, Options, Service, TlsKey, join_platform,
};
use tabbify_mesh::PrivateKey;
use tabbify_process::connect::TcpSocket;
use tabbify_process::{Clock, Importance, SystemClock, Tasks, files, signals};
use tabbify_token::{OwnerProof, PlatformId, SecretKey};
use tabbify_types::{EventId, HostName, Tenant};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use crate::data_dir::DataDir;
use crate::own_token::OwnToken;
use crate::read_node;
use crate::role::{self, Arguments};
use crate::substrate::log_socket;

/// Where it listens unless it is told otherwise: loopback, until somebody says who may come.
const LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8888);
/// The coordinator's TLS key in the data directory; join tokens name its digest.
const TLS_KEY: &str = "coordinator.key";
/// LIMIT: bytes of a join token, with the white space around it.
const TOKEN_LEN_MAX: u64 = 16 * 1024;
/// How long a service token must still last to be shown once more.
const TOKEN_REST: std::time::Duration = std::time::Duration::from_secs(3600);

/// Serves until a signal.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Config { coordinator } = arguments.config()?;
    let data = arguments.data_dir(coordinator.data_dir)?;
    let keys = keys(&data)?;
    let tasks = Tasks::new();
    signals::stop_on_signals(&tasks)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let issuers = IssuerKeys::of(&keys);
    let platform = PlatformId::of(&keys.root.public());
    let own = OwnToken::new(&issuers, platform.clone(), Arc::clone(&clock));
    let log = own.connect(&log_socket(&data), &tasks).await?;
    let snapshots = data.snapshots().join("coordinator");
    let config = tabbify_auth::Config {
        snapshots: Some(snapshots.clone()),
        ..tabbify_auth::Config::new(issuers)
    };
    let auth = Auth::open(Arc::new(log), config, Arc::clone(&clock), &tasks).await?;
    own.started(&auth);
    let mine: Arc<dyn EventLog> = Arc::new(read_node::connect(&data, "coordinator", &tasks).await?);
    let signs = auth.clone();
    let options = Options::new(Arc::new(move || signs.signer())).snapshots(snapshots);
    let decides = Coordinator::start_apart(mine, options, clock, &tasks).await?;
    let listen = coordinator.listen.unwrap_or(LISTEN);
    let (address, tls) = serve(&data, decides, auth, listen, &tasks).await?;
    role::say(&format!(
        "coordinator · platform {platform} · {address} · key {}\n",
        tls.pin()
    ));
    role::until_stopped(&tasks).await
}

/// Answers to whoever proves a key, until the tasks end; gives where, and with which key.
pub(crate) async fn serve(
    data: &DataDir,
    coordinator: Coordinator,
    auth: Auth,
    listen: SocketAddr,
    tasks: &Tasks,
) -> anyhow::Result<(SocketAddr, TlsKey)> {
    let path = data.path().join(TLS_KEY);
    let tls = TlsKey::load_or_create(&path).with_context(|| path.display().to_string())?;
    let cannot = || format!("the coordinator cannot listen on {listen}");
    let listener = TcpListener::bind(listen).await.with_context(cannot)?;
    let address = listener.local_addr()?;
    let admit = Arc::new(Admitting {
        auth,
        token: Mutex::new(None),
    });
    let service = Service::new(coordinator, admit, &Limits::default(), tasks);
    let key = tls.clone();
    tasks.spawn("coordinator service", Importance::Essential, async move {
        service.serve_tls(listener, key).await;
    });
    Ok((address, tls))
}

/// Uses join tokens up, with the auth of this process.
struct Admitting {
    auth: Auth,
    /// What the coordinator shows to auth, until it ends.
    token: Mutex<Option<IssuedToken>>,
}

impl Admitting {
    async fn token(&self) -> Result<String, RequestError> {
        let mut held = self.token.lock().await;
        let soon = SystemClock.now().plus(TOKEN_REST);
        if let Some(token) = held.as_ref().filter(|token| token.expires > soon) {
            return Ok(token.token.clone());
        }
        let scopes = [scope::AUTH_ISSUE];
        let issued = self
            .auth
            .service_token("coordinator", &scopes, API_AUDIENCE);
        let issued = issued.await?;
        Ok(held.insert(issued).token.clone())
    }
}

impl fmt::Debug for Admitting {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitting")
            .field("auth", &self.auth)
            .finish_non_exhaustive()
    }
}

impl Admit for Admitting {
    fn admit(&self, request: AdmitRequest) -> BoxFuture<'_, Result<Admission, RequestError>> {
        Box::pin(async move {
            let token = self.token().await?;
            self.auth.admit(Caller::bearer(&token), request).await
        })
    }
}

/// Flags of `tabbify invite`.
#[derive(Debug, clap::Args)]
pub(crate) struct Invite {
    /// The name that the machine will have
    host: HostName,
    /// A tag that it will have, such as `role:node`; may be given several times
    #[arg(long = "tag")]
    tags: Vec<String>,
    /// A runtime that it may be used for, such as `wasm-http`; may be given several times
    #[arg(long = "runtime")]
    runtimes: Vec<String>,
    /// The tenant whose apps it may run [default: all]
    #[arg(long)]
    tenant: Option<Tenant>,
    /// The platform's data directory [default: $XDG_DATA_HOME/tabbify]
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Writes a join token to standard output, for whoever holds the directory's keys.
pub(crate) async fn invite(arguments: Invite) -> anyhow::Result<()> {
    let data = DataDir::choose(arguments.data_dir)?;
    let keys = keys(&data)?;
    let path = data.path().join(TLS_KEY);
    if !path.exists() {
        let dir = data.path().display();
        bail!("no coordinator has been here yet. Run: tabbify coordinator --data-dir {dir}");
    }
    let pin = TlsKey::load_or_create(&path)?.pin();
    let tasks = Tasks::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let platform = PlatformId::of(&keys.root.public());
    let own = OwnToken::new(&IssuerKeys::of(&keys), platform.clone(), Arc::clone(&clock));
    let log = own.connect(&log_socket(&data), &tasks).await?;
    let auth = Auth::start(Arc::new(log), &keys, Arc::clone(&clock), &tasks).await?;
    let jti = EventId::mint().to_string();
    let proof = OwnerProof::new(platform, OWNER, &jti, clock.now()).sign(&keys.owner)?;
    let owner = auth.exchange(&proof).await?.token;
    let order = TokenOrder::Join {
        host: arguments.host,
        tenant: Some(arguments.tenant.unwrap_or_else(Tenant::system)),
        tags: arguments.tags,
        capabilities: arguments.runtimes,
        coordinator: pin.to_string(),
        life_s: None,
    };
    let issued = auth.issue(Caller::bearer(&owner), order).await;
    // Its connections end with it.
    drop(auth);
    role::stop(&tasks).await?;
    role::say(&format!("{}\n", issued?.token));
    Ok(())
}

/// The keys of the data directory, which are not made here.
fn keys(data: &DataDir) -> anyhow::Result<Keys> {
    if !data.keys().is_dir() {
        let dir = data.path().display();
        bail!("{dir} has no keys of a platform. Run: tabbify init --data-dir {dir}");
    }
    Ok(Keys::open(&data.keys())?)
}

/// Flags of `tabbify join`.
#[derive(Debug, clap::Args)]
pub(crate) struct Join {
    /// Where the coordinator answers, as host:port
    coordinator: String,
    /// A file with the join token; without, it is read from standard input, never from an argument
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// This machine's data directory [default: $XDG_DATA_HOME/tabbify]
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Makes this machine a member, and keeps what it needs for that.
pub(crate) async fn join(arguments: Join) -> anyhow::Result<()> {
    let token = read_token(arguments.token_file)?;
    let invited = Invited::read(&token)?;
    let data = DataDir::choose(arguments.data_dir)?;
    files::private_dir(data.path()).with_context(|| data.path().display().to_string())?;
    let host = &invited.host;
    let mut addresses = tokio::net::lookup_host(&arguments.coordinator)
        .await
        .with_context(|| format!("{} has no address", arguments.coordinator))?;
    let address = addresses
        .next()
        .with_context(|| format!("{} has no address", arguments.coordinator))?;
    let key = data.node_key();
    PrivateKey::load_or_create(&key)?;
    let secret = MeshSecret::read(&key).with_context(|| key.display().to_string())?;
    let signing = signing_key(&data)?;
    let tasks = Tasks::new();
    let joined = join_platform(
        Arc::new(TcpSocket { address }),
        &token,
        secret,
        &signing,
        Vec::new(),
        &SystemClock,
        &tasks,
    )
    .await
    .with_context(|| format!("{host} cannot join at {}", arguments.coordinator));
    role::stop(&tasks).await?;
    let joined = joined?;
    let path = data.path().join("membership.json");
    files::write_atomic(&path, &serde_json::to_vec_pretty(&joined)?, 0o600)?;
    let certificate = &joined.certificate;
    role::say(&format!(
        "{} · {} · platform {} · until {}\n",
        certificate.host,
        certificate.address,
        PlatformId::of(&joined.root),
        certificate.not_after
    ));
    Ok(())
}

fn read_token(file: Option<PathBuf>) -> anyhow::Result<String> {
    let mut text = String::new();
    match file {
        Some(path) => {
            let bytes = files::read_secret(&path).with_context(|| path.display().to_string())?;
            text = String::from_utf8(bytes).context("the token file is not text")?;
        }
        None => {
            if std::io::stdin().is_terminal() {
                role::say("Paste the join token, then end the line and the input (Ctrl-D):\n");
            }
            std::io::stdin()
                .take(TOKEN_LEN_MAX)
                .read_to_string(&mut text)?;
        }
    }
    Ok(text.trim().to_owned())
}

/// The key that signs spawn tickets on this machine.
fn signing_key(data: &DataDir) -> anyhow::Result<SecretKey> {
    let path = data.path().join("host.key");
    let shown = || path.display().to_string();
    match files::read_secret(&path) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).ok().with_context(shown)?;
            Ok(SecretKey::from_text(&text).with_context(shown)?)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = SecretKey::generate()?;
            files::write_atomic(&path, key.to_text().as_bytes(), 0o600).with_context(shown)?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(shown),
    }
}

/// The file: `[coordinator]` alone.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    coordinator: Section,
}

/// `[coordinator]`.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Section {
    /// The data directory, with the platform's keys and the log's socket. Default
    /// `$XDG_DATA_HOME/tabbify`.
    data_dir: Option<PathBuf>,
    /// Where machines reach it. Default `127.0.0.1:8888`.
    listen: Option<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_is_a_configuration() {
        let examples =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating");
        let file = examples.join("coordinator.toml");
        let config: Config = tabbify_process::config::load(Some(&file), &[]).unwrap();
        assert!(config.coordinator.listen.is_some() && config.coordinator.data_dir.is_some());
    }

    #[test]
    fn the_signing_key_is_made_once() {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::choose(Some(home.path().to_path_buf())).unwrap();
        let key = signing_key(&data).unwrap();
        assert_eq!(signing_key(&data).unwrap().id(), key.id());
        std::fs::write(home.path().join("host.key"), "half a k").unwrap();
        assert!(signing_key(&data).is_err());
    }
}
