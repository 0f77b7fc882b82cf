//! The coordinator: where machines join and ask who holds which address, over TLS on a socket of the data
//! directory and, once somebody says where, over TCP. Inside `tabbify up`, or as `tabbify coordinator` on the
//! log of a transaction-node; several of them decide together.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tabbify_api::BoxFuture;
use tabbify_api::auth::IssuedToken;
use tabbify_api::auth::issue::{
    API_AUDIENCE, Admission, AdmitRequest, Caller, Issuer as _, RequestError,
};
use tabbify_api::auth::scope;
use tabbify_api::coordinator::{Helpers, HostCertificate, RelayAt};
use tabbify_api::log::EventLog;
use tabbify_auth::{Auth, IssuerKeys, Keys};
use tabbify_coordinator::{Admit, Coordinator, Limits, Options, Service, host_order};
use tabbify_membership::TlsKey;
use tabbify_process::{Clock, Importance, SystemClock, Tasks, files, signals};
use tabbify_token::PlatformId;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use crate::data_dir::DataDir;
use crate::listen::{Taken, Transport};
use crate::own_token::{self, OwnToken};
use crate::read_node;
use crate::role::{self, Arguments};
use crate::substrate::{COORDINATOR_SOCKET, bind, log_socket};
use crate::way::COORDINATOR_PORT;

/// Where it listens alone unless it is told otherwise: loopback, until somebody says who may come.
const LISTEN: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    COORDINATOR_PORT,
);
/// How long a service token must still last to be shown once more.
const TOKEN_REST: Duration = Duration::from_secs(3600);

/// Serves until a signal.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (data, settings) = arguments.config::<Config>()?.coordinator.into_settings();
    let data = arguments.data_dir(data)?;
    let keys = keys(&data)?;
    let tasks = Tasks::new();
    signals::stop_on_signals(&tasks)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let issuers = IssuerKeys::of(&keys);
    let platform = PlatformId::of(&keys.root.public());
    let own = OwnToken::new(&issuers, platform.clone(), Arc::clone(&clock));
    let log = own.connect(&log_socket(&data), &tasks).await;
    let log = log.map_err(|error| own_token::away(error, &data))?;
    let snapshots = data.snapshots().join("coordinator");
    let config = tabbify_auth::Config {
        snapshots: Some(snapshots.clone()),
        ..tabbify_auth::Config::new(issuers)
    };
    let auth = Auth::open(Arc::new(log), config, Arc::clone(&clock), &tasks).await?;
    own.started(&auth);
    let mine: Arc<dyn EventLog> = Arc::new(read_node::connect(&data, "coordinator", &tasks).await?);
    let options = settings.options(&auth, Vec::new()).snapshots(snapshots);
    let decides = Coordinator::start_apart(mine, options, clock, &tasks).await?;
    let served = Served::new(&data, decides, auth, &tasks)?;
    let listen = settings.listen.unwrap_or(LISTEN);
    let address = served.on_tcp(&data, listen, &tasks).await?;
    role::say(&format!(
        "coordinator · platform {platform} · {address} · key {}\n",
        served.tls.pin()
    ));
    role::until_stopped(&tasks).await
}

/// A coordinator that answers to whoever proves a key.
pub(crate) struct Served {
    service: Service,
    /// The key that members know it by.
    pub(crate) tls: TlsKey,
}

impl Served {
    /// With the TLS key of the data directory, which is made once.
    pub(crate) fn new(
        data: &DataDir,
        coordinator: Coordinator,
        auth: Auth,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let path = data.coordinator_key();
        let tls = TlsKey::load_or_create(&path).with_context(|| path.display().to_string())?;
        let admit = Arc::new(Admitting {
            auth,
            token: Mutex::new(None),
        });
        let service = Service::new(coordinator, admit, &Limits::default(), tasks);
        Ok(Self { service, tls })
    }

    /// Serves whoever can open the socket in the data directory, until the tasks end.
    pub(crate) fn on_socket(&self, data: &DataDir, tasks: &Tasks) -> anyhow::Result<()> {
        let listener = bind(data.path(), COORDINATOR_SOCKET)?;
        let (service, key) = (self.service.clone(), self.tls.clone());
        tasks.spawn("coordinator socket", Importance::Essential, async move {
            service.serve_tls(listener, key).await;
        });
        Ok(())
    }

    /// Serves whoever connects over TCP, until the tasks end; gives where, and says it in the directory.
    pub(crate) async fn on_tcp(
        &self,
        data: &DataDir,
        listen: SocketAddr,
        tasks: &Tasks,
    ) -> anyhow::Result<SocketAddr> {
        let taken = Taken::of("[coordinator] listen", Transport::Tcp, listen);
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|error| taken.or(error))?;
        let address = listener.local_addr()?;
        let listen = Some(address);
        Record { listen }.write(data)?;
        let (service, key) = (self.service.clone(), self.tls.clone());
        tasks.spawn("coordinator service", Importance::Essential, async move {
            service.serve_tls(listener, key).await;
        });
        Ok(address)
    }
}

/// Where the coordinator of a data directory listens, for `tabbify invite`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Record {
    /// Over TCP, if it does.
    pub(crate) listen: Option<SocketAddr>,
}

impl Record {
    /// What was said last. It is advice for people, so what cannot be read says nothing.
    pub(crate) fn read(data: &DataDir) -> Self {
        let bytes = std::fs::read(data.coordinator_record()).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Says it from now on.
    pub(crate) fn write(&self, data: &DataDir) -> anyhow::Result<()> {
        let path = data.coordinator_record();
        files::write_atomic(&path, &serde_json::to_vec(self)?, 0o600)
            .with_context(|| path.display().to_string())
    }
}

/// Uses join tokens up and gives machines theirs, with the auth of this process.
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

    fn host_token<'a>(
        &'a self,
        certificate: &'a HostCertificate,
    ) -> BoxFuture<'a, Result<IssuedToken, RequestError>> {
        Box::pin(async move {
            let (token, order) = (self.token().await?, host_order(certificate));
            self.auth.issue(Caller::bearer(&token), order).await
        })
    }
}

/// The keys of the data directory, which are not made here.
pub(crate) fn keys(data: &DataDir) -> anyhow::Result<Keys> {
    if !data.keys().is_dir() {
        let dir = data.path().display();
        bail!("{dir} has no keys of a platform. Run: tabbify init --data-dir {dir}");
    }
    Ok(Keys::open(&data.keys())?)
}

/// What there is to say of a coordinator, wherever it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Where machines reach it, over TCP.
    pub(crate) listen: Option<SocketAddr>,
    /// STUN servers that members are told of, beside the relays, which answer it, too. Two at different
    /// addresses show how hard a NAT is.
    stun: Vec<SocketAddr>,
    /// Relays elsewhere that members are told of, as `tabbify relay` says them.
    relays: Vec<RelayAt>,
    /// After how many seconds of silence a machine is lost, and its apps go elsewhere. Default 60.
    lost_after_s: Option<NonZeroU32>,
    /// How much of a machine's memory may be promised to apps on it, in hundredths. Default 400: most use far
    /// less than the most that they may.
    memory_overcommit_percent: Option<NonZeroU32>,
}

#[cfg(test)]
impl Settings {
    /// Nothing but what counts without being said.
    pub(crate) fn shown_defaults() -> Self {
        let lost_after = tabbify_coordinator::LOST_AFTER.as_secs();
        Self {
            lost_after_s: u32::try_from(lost_after).ok().and_then(NonZeroU32::new),
            memory_overcommit_percent: NonZeroU32::new(tabbify_coordinator::OVERCOMMIT_PERCENT),
            ..Self::default()
        }
    }
}

impl Settings {
    /// The coordinator's options, with relays of this process before those that are configured.
    pub(crate) fn options(&self, auth: &Auth, mut relays: Vec<RelayAt>) -> Options {
        relays.extend(self.relays.iter().cloned());
        let signs = auth.clone();
        let options = Options::new(Arc::new(move || signs.signer())).helpers(Helpers {
            relays,
            stun: self.stun.clone(),
        });
        let options = match self.lost_after_s {
            Some(seconds) => options.lost_after(Duration::from_secs(seconds.get().into())),
            None => options,
        };
        match self.memory_overcommit_percent {
            Some(percent) => options.overcommit_percent(percent.get()),
            None => options,
        }
    }
}

/// The file: `[coordinator]` alone.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    coordinator: Section,
}

/// `[coordinator]`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Section {
    /// The data directory, with the platform's keys and the log's socket. Default
    /// `$XDG_DATA_HOME/tabbify`.
    data_dir: Option<PathBuf>,
    /// See [`Settings`]. Default `127.0.0.1:8888`.
    listen: Option<SocketAddr>,
    /// See [`Settings`].
    stun: Vec<SocketAddr>,
    /// See [`Settings`].
    relays: Vec<RelayAt>,
    /// See [`Settings`].
    lost_after_s: Option<NonZeroU32>,
    /// See [`Settings`].
    memory_overcommit_percent: Option<NonZeroU32>,
}

#[cfg(test)]
impl Config {
    /// The relays that it names.
    pub(crate) fn relays(&self) -> &[RelayAt] {
        &self.coordinator.relays
    }
}

impl Section {
    fn into_settings(self) -> (Option<PathBuf>, Settings) {
        let settings = Settings {
            listen: self.listen,
            stun: self.stun,
            relays: self.relays,
            lost_after_s: self.lost_after_s,
            memory_overcommit_percent: self.memory_overcommit_percent,
        };
        (self.data_dir, settings)
    }
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
        let (data, settings) = config.coordinator.into_settings();
        assert!(settings.listen.is_some() && data.is_some());
        assert!(!settings.relays.is_empty() && !settings.stun.is_empty());
        let unknown = "[coordinator]\nlisten_on = \"127.0.0.1:1\"\n";
        let home = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(home.path(), unknown).unwrap();
        let refused = tabbify_process::config::load::<Config>(Some(home.path()), &[]);
        assert!(refused.is_err(), "{refused:?}");
    }

    #[test]
    fn where_it_listens_is_said_in_the_directory() {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::choose(Some(home.path().to_path_buf())).unwrap();
        assert_eq!(Record::read(&data), Record::default());
        let listen = Some("0.0.0.0:8888".parse().unwrap());
        Record { listen }.write(&data).unwrap();
        assert_eq!(Record::read(&data).listen, listen);
    }
}
