//! What the holder of issuer keys shows to the log. Whoever holds them is auth, and says so itself: a
//! token for it is not kept anywhere.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tabbify_api::auth::issue::API_AUDIENCE;
use tabbify_api::log::{EventLog, Line, ReadError};
use tabbify_auth::{Auth, IssuerKeys};
use tabbify_log::RemoteLog;
use tabbify_process::connect::{Bearer, UnixSocket};
use tabbify_process::{Clock, Importance, Tasks, chain};
use tabbify_token::{Claims, Kind, PlatformId, SecretKey, Signer};
use tabbify_types::{EventId, Tenant, Timestamp};
use tokio::time::sleep;

use crate::data_dir::DataDir;

/// Life of such a token: a subscription is opened again when the one that it was opened with ends.
const LIFE: Duration = Kind::Service.life_max();
/// The pause before the second attempt to connect; doubles with each.
const PAUSE: Duration = Duration::from_millis(50);
/// LIMIT: the longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Why there is no log behind the socket of a data directory, and what to do.
pub(crate) fn away(error: ReadError, data: &DataDir) -> anyhow::Error {
    let dir = data.path().display();
    let next = match &error {
        ReadError::Stopping => format!(
            "No log answers in {dir}: neither `tabbify up` nor a transaction-node runs there. Start it \
             (tabbify up --data-dir {dir}), and run this again beside it"
        ),
        _ => format!("The log of {dir} takes no question of this program"),
    };
    anyhow::Error::new(error).context(next)
}

/// Signs for itself, with the key that counts: which that is, is known once auth has started, and is
/// found out before by trying.
pub(crate) struct OwnToken {
    keys: Vec<SecretKey>,
    platform: PlatformId,
    clock: Arc<dyn Clock>,
    /// How many of the keys have been refused.
    refused: AtomicUsize,
    /// While it runs. It has the connections to the log, which have this: see [`OwnToken::ended`].
    auth: Mutex<Option<Auth>>,
}

impl OwnToken {
    /// With the keys that this machine has.
    pub(crate) fn new(
        issuers: &IssuerKeys,
        platform: PlatformId,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        Arc::new(Self {
            keys: issuers.all(),
            platform,
            clock,
            refused: AtomicUsize::new(0),
            auth: Mutex::default(),
        })
    }

    /// From here on `auth` knows which key counts.
    pub(crate) fn started(&self, auth: &Auth) {
        *self.auth.lock().unwrap_or_else(PoisonError::into_inner) = Some(auth.clone());
    }

    /// Lets go of `auth`: its connections to the log end with the last who has it.
    pub(crate) fn ended(&self) {
        *self.auth.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Connects to the log behind `socket` now, with the first key that it takes.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        socket: &UnixSocket,
        tasks: &Tasks,
    ) -> Result<RemoteLog, ReadError> {
        for _ in 1..self.keys.len() {
            match self.try_connect(socket, tasks).await {
                Err(ReadError::Refused { .. }) => {}
                connected => return connected,
            }
        }
        self.try_connect(socket, tasks).await
    }

    /// The log behind `socket`, as soon as it is there.
    pub(crate) fn connect_later(self: &Arc<Self>, socket: UnixSocket, tasks: &Tasks) -> Arc<Line> {
        let line = Arc::new(Line::default());
        let (own, joined) = (Arc::clone(self), Arc::clone(&line));
        let (children, stop) = (tasks.clone(), tasks.token());
        let connecting = async move {
            let mut pause = PAUSE;
            loop {
                let asked = own.try_connect(&socket, &children);
                let Some(asked) = stop.run_until_cancelled(asked).await else {
                    return;
                };
                match asked {
                    Ok(log) => return joined.join(Some(Arc::new(log) as Arc<dyn EventLog>)),
                    Err(error) if pause == PAUSE => {
                        let directory = socket.directory.display().to_string();
                        tracing::warn!(error = %chain(&error), directory, "the log is away; trying again");
                    }
                    Err(_) => {}
                }
                if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                    return;
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
        };
        tasks.spawn("log connection", Importance::Detached, connecting);
        line
    }

    async fn try_connect(
        self: &Arc<Self>,
        socket: &UnixSocket,
        tasks: &Tasks,
    ) -> Result<RemoteLog, ReadError> {
        let own = Arc::clone(self);
        let bearer: Bearer = Arc::new(move || own.token());
        let connected = RemoteLog::connect(Arc::new(socket.clone()), bearer, tasks).await;
        if matches!(connected, Err(ReadError::Refused { .. })) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        connected
    }

    fn token(&self) -> String {
        let now = Timestamp::from_secs(self.clock.now().secs());
        let claims = Claims {
            iss: self.platform.clone(),
            sub: "service:auth".to_owned(),
            aud: API_AUDIENCE.to_owned(),
            kind: Kind::Service,
            tenant: Tenant::system(),
            tags: Vec::new(),
            scopes: Vec::new(),
            ulas: Vec::new(),
            cnf: None,
            join: None,
            iat: now,
            nbf: now,
            exp: now.plus(LIFE),
            jti: EventId::mint().to_string(),
        };
        let signed = self.signer().map(|signer| signer.sign(&claims));
        match signed {
            Some(Ok(token)) => token,
            Some(Err(error)) => {
                tracing::error!(error = %chain(&error), "no token for the log");
                String::new()
            }
            None => String::new(),
        }
    }

    fn signer(&self) -> Option<Signer> {
        let auth = self.auth.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(auth) = &*auth {
            return Some(auth.signer());
        }
        let at = self.refused.load(Ordering::Relaxed) % self.keys.len().max(1);
        let key = self.keys.get(at)?;
        Some(Signer::new(key.clone(), self.platform.clone()))
    }
}
