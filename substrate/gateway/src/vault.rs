//! The vault: changes and reads, each in the order that a crash at any moment leaves right.
//!
//! ```text
//!   set      seal ─▶ both files synced ─▶ appended with `expect` ─▶ the record before it is shredded
//!   remove                                appended with `expect` ─▶ the record is shredded
//! ```
//!
//! A record is called by the id of the event that names it. So a crash before the append leaves one that
//! the log does not name, and after it one that is not named any more: both are removed at the next start,
//! and what the log names is never touched. Two vaults on one directory and log would each do the same.

mod start;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::auth::issue::{API_AUDIENCE, Caller};
use tabbify_api::auth::{Identity, Revocations, scope};
use tabbify_api::log::{Append, AppendError, Appended, EventLog, Expect, LogAccess};
use tabbify_api::secrets::{
    RELEASE_VALUES_LEN_MAX, Release, Resolved, SECRETS_MAX, SecretList, SecretValue, SecretView,
    VALUE_LEN_MAX,
};
use tabbify_process::fold::Folded;
use tabbify_process::{Clock, Importance, Tasks, chain};
use tabbify_types::event::v1::{InstanceRef, SecretRegistered, SecretRemoved, SecretRotated};
use tabbify_types::{
    AppUla, Event, EventId, InstanceUla, NewEvent, Position, SecretName, SecretVersion, Segment,
    Tenant,
};
use tokio::sync::{Mutex, oneshot};

use crate::error::Error;
use crate::master::MasterKey;
use crate::seal::{self, About};
use crate::service::Peer;
use crate::state::{Entry, Held, State, Uses};
use crate::store::Store;

/// Kinds of tokens whose holders may ask for a tenant's secrets.
const CALLERS: &[&str] = &["user", "agent"];
/// LIMIT: how long what is known of the log may take to be all of it.
const VIEW_WITHIN: Duration = Duration::from_secs(5);
/// LIMIT: attempts to change a secret that others change too.
const ATTEMPTS_MAX: usize = 4;
/// LIMIT: attempts to append a change while the log is stopping.
const APPENDS_MAX: u32 = 4;
/// The pause before the next append; doubles with each.
const APPEND_PAUSE: Duration = Duration::from_millis(100);

/// What a vault works with; everything that tests replace is behind a trait.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The log, with [`Vault::log_scope`].
    pub log: Arc<dyn EventLog>,
    /// The log for callers: what they change is written in their names, in their tenants' secrets.
    pub writers: Arc<dyn LogAccess>,
    /// Says who a token is.
    pub tokens: Arc<dyn Revocations>,
    /// What wraps the data keys.
    pub master: MasterKey,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Owner of every task.
    pub tasks: Tasks,
}

/// Keeps secrets. Clones are the same vault.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    log: Arc<dyn EventLog>,
    writers: Arc<dyn LogAccess>,
    tokens: Arc<dyn Revocations>,
    master: MasterKey,
    store: Store,
    known: Folded<State>,
    /// Held from the first file of a change to the last: changes are rare, and what is not named by the
    /// log yet must not be taken for left behind.
    changing: Mutex<()>,
    tasks: Tasks,
}

/// A value that is to be set, on its way through [`Vault::set`].
struct Change {
    caller: Identity,
    name: SecretName,
}

impl Vault {
    /// What the vault reads of the log. It writes in the names of others.
    #[must_use]
    pub fn log_scope() -> tabbify_api::log::LogScope {
        State::scope()
    }

    /// Gives a secret of the caller's tenant its first value, or the next; with whether it was the first.
    /// A change that has begun is brought to its end, whether or not the caller waits for it.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Unknown`] alone leaves it open whether it was made.
    pub async fn set(
        &self,
        caller: Caller<'_>,
        name: SecretName,
        value: SecretValue,
    ) -> Result<(SecretView, bool), Error> {
        let caller = self.may_change(caller)?;
        if value.reveal().is_empty() {
            return Err(Error::Malformed("the value is empty"));
        }
        if value.reveal().len() > VALUE_LEN_MAX {
            return Err(Error::ValueTooLong);
        }
        let vault = Arc::clone(&self.0);
        let change = Change { caller, name };
        let made = async move { vault.set(&change, &value).await };
        self.finish("secret set", made).await
    }

    /// Forgets a secret of the caller's tenant.
    ///
    /// # Errors
    /// [`Error`]; after [`Error::Disk`] it is forgotten, and its record is destroyed at the next start.
    pub async fn remove(&self, caller: Caller<'_>, name: SecretName) -> Result<(), Error> {
        let caller = self.may_change(caller)?;
        let vault = Arc::clone(&self.0);
        let change = Change { caller, name };
        let made = async move { vault.remove(&change).await };
        self.finish("secret remove", made).await
    }

    /// The secrets of the caller's tenant.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn list(&self, caller: Caller<'_>) -> Result<SecretList, Error> {
        let caller = self.known(caller, scope::SECRETS_READ)?;
        self.0.up_to_date().await?;
        let secrets = self.0.known.read(|view| view.state.views(&caller.tenant));
        Ok(SecretList { secrets })
    }

    /// What the release of the instance at the other end names, all of it or nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn release(&self, peer: &Peer) -> Result<Release, Error> {
        let (Some(key), Some(address)) = (peer.proven, peer.address) else {
            return Err(Error::NoInstance);
        };
        // The lease was granted before the instance could ask, and what was set before is to be seen.
        self.0.up_to_date().await?;
        let holder = self.0.known.read(|view| {
            let (of, uses) = view.state.holder(&key)?;
            Some((of, uses.clone()))
        });
        let (of, uses) = holder.ok_or(Error::NoLease)?;
        let InstanceRef { app, instance } = of;
        let own = [
            AppUla::derive(app).addr(),
            InstanceUla::derive(app, instance).addr(),
        ];
        if !own.contains(&address) {
            return Err(Error::Elsewhere);
        }
        let release = self.0.open_all(&uses).await?;
        let secrets = release.secrets.len();
        tracing::info!(role = "api-gateway", %app, %instance, secrets, "an instance has its secrets");
        Ok(release)
    }

    /// Whether the caller may set secrets at all, for whoever has not taken the value yet.
    pub(crate) fn may_set(&self, caller: Caller<'_>) -> Result<(), Error> {
        self.may_change(caller).map(drop)
    }

    fn may_change(&self, caller: Caller<'_>) -> Result<Identity, Error> {
        let known = self.known(caller, scope::SECRETS_WRITE)?;
        match known.kind.as_str() {
            "user" => Ok(known),
            _ => Err(Error::NoPerson(known.subject)),
        }
    }

    fn known(&self, caller: Caller<'_>, scope: &'static str) -> Result<Identity, Error> {
        if caller.token.is_empty() {
            return Err(Error::TokenMissing);
        }
        let tokens = &self.0.tokens;
        let checked = tokens.check(caller.token, CALLERS, API_AUDIENCE, caller.proven);
        let verified = checked.map_err(Error::Credential)?;
        match verified.allows(scope) {
            true => Ok(verified.identity()),
            false => Err(Error::Scope(scope)),
        }
    }

    /// Runs a change as a task of its own.
    async fn finish<T: Send + 'static>(
        &self,
        name: &'static str,
        change: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let (told, made) = oneshot::channel();
        let tasks = &self.0.tasks;
        tasks.spawn(name, Importance::Detached, async move {
            // Whoever asked may have gone.
            let _ = told.send(change.await);
        });
        made.await.unwrap_or(Err(Error::Stopping))
    }
}

impl Inner {
    async fn set(&self, change: &Change, value: &SecretValue) -> Result<(SecretView, bool), Error> {
        let _changing = self.changing.lock().await;
        let Change { caller, name } = change;
        for _ in 0..ATTEMPTS_MAX {
            self.up_to_date().await?;
            let (entry, count) = self.entry(&caller.tenant, name);
            let before = entry.as_ref().and_then(|entry| entry.held);
            if before.is_none() && count >= SECRETS_MAX {
                return Err(Error::Full);
            }
            let version = entry
                .as_ref()
                .map_or(SecretVersion(1), |it| it.version.next());
            let id = EventId::mint();
            self.write(id, &caller.tenant, name, version, value).await?;
            let event = named(name, version, before);
            match self.append(caller, name, id, event, entry.as_ref()).await {
                Ok(appended) => {
                    // Also where the view lags: what the log does not name any more is not kept.
                    if let Some(before) = before {
                        self.forget(before.id).await;
                    }
                    self.seen(appended.last).await?;
                    let tenant = &caller.tenant;
                    tracing::info!(role = "api-gateway", %tenant, %name, %version, "a secret is set");
                    let view = self.known.read(|view| view.state.view(tenant, name));
                    // Somebody else may have removed it since.
                    let view = view.ok_or_else(|| Error::Contended(name.to_string()))?;
                    return Ok((view, before.is_none()));
                }
                Err(AppendError::Conflict { .. }) => self.forget(id).await,
                // It may be named by now: the next start finds out.
                Err(AppendError::Stopping) => return Err(Error::Unknown),
                Err(error) => {
                    self.forget(id).await;
                    return Err(Error::Append(error));
                }
            }
        }
        Err(Error::Contended(name.to_string()))
    }

    async fn remove(&self, change: &Change) -> Result<(), Error> {
        let _changing = self.changing.lock().await;
        let Change { caller, name } = change;
        for _ in 0..ATTEMPTS_MAX {
            self.up_to_date().await?;
            let (entry, _) = self.entry(&caller.tenant, name);
            let Some((held, entry)) = entry.and_then(|entry| Some((entry.held?, entry))) else {
                return Err(Error::Missing(vec![name.clone()]));
            };
            let event = SecretRemoved { name: name.clone() }.into();
            let id = EventId::mint();
            match self.append(caller, name, id, event, Some(&entry)).await {
                Ok(appended) => {
                    // Also where the view lags: who repeats it is told that there is nothing.
                    self.shred(held.id).await?;
                    self.seen(appended.last).await?;
                    let tenant = &caller.tenant;
                    tracing::info!(role = "api-gateway", %tenant, %name, "a secret is removed");
                    return Ok(());
                }
                Err(AppendError::Conflict { .. }) => {}
                Err(AppendError::Stopping) => return Err(Error::Unknown),
                Err(error) => return Err(Error::Append(error)),
            }
        }
        Err(Error::Contended(name.to_string()))
    }

    /// Opens every secret that an instance uses. A value that is replaced meanwhile is looked up again.
    async fn open_all(&self, uses: &Uses) -> Result<Release, Error> {
        let mut secrets = Vec::with_capacity(uses.names.len());
        let mut len = 0;
        for name in &uses.names {
            let opened = self.open(&uses.tenant, name).await?;
            let Some(opened) = opened else {
                return Err(Error::Missing(self.missing(uses)));
            };
            len += opened.value.reveal().len();
            if len > RELEASE_VALUES_LEN_MAX {
                return Err(Error::ReleaseTooLarge);
            }
            secrets.push(opened);
        }
        Ok(Release { secrets })
    }

    async fn open(&self, tenant: &Tenant, name: &SecretName) -> Result<Option<Resolved>, Error> {
        let mut lost = None;
        loop {
            let (entry, _) = self.entry(tenant, name);
            let Some((version, held)) = entry.and_then(|it| Some((it.version, it.held?))) else {
                return Ok(None);
            };
            if lost == Some(version) {
                let name = name.to_string();
                return Err(Error::Lost { name, version });
            }
            let Some(sealed) = self.read(held.id).await? else {
                lost = Some(version);
                continue;
            };
            let about = About {
                tenant: tenant.clone(),
                name: name.clone(),
                version,
            };
            let value = seal::open(&self.master, &about, &sealed)
                .map_err(|why| Error::sealed(name, version, why))?;
            return Ok(Some(Resolved {
                name: name.clone(),
                version,
                value,
            }));
        }
    }

    fn missing(&self, uses: &Uses) -> Vec<SecretName> {
        let names = uses.names.iter().cloned();
        self.known.read(|view| {
            let there = |name: &SecretName| view.state.view(&uses.tenant, name).is_some();
            names.filter(|name| !there(name)).collect()
        })
    }

    fn entry(&self, tenant: &Tenant, name: &SecretName) -> (Option<Entry>, usize) {
        self.known.read(|view| {
            let entry = view.state.entry(tenant, name).cloned();
            (entry, view.state.count(tenant))
        })
    }

    async fn append(
        &self,
        caller: &Identity,
        name: &SecretName,
        id: EventId,
        event: Event,
        entry: Option<&Entry>,
    ) -> Result<Appended, AppendError> {
        let segment = Segment::secrets(&caller.tenant);
        let event = NewEvent::with_id(id, segment.clone(), name, &event)
            .expect("INVARIANT: a name and a number are no 64 KiB");
        let expect = entry.map_or(Expect::None, |entry| Expect::Rev(entry.rev));
        let batch = Append::of(vec![event]).expecting(segment, name.as_str(), expect);
        let log = self.writers.of(caller);
        let mut pause = APPEND_PAUSE;
        for _ in 1..APPENDS_MAX {
            match log.append(batch.clone()).await {
                // The same id makes the repetition safe.
                Err(AppendError::Stopping) => tokio::time::sleep(pause).await,
                answered => return answered,
            }
            pause *= 2;
        }
        log.append(batch).await
    }

    /// Waits until everything that is in the log now is known.
    async fn up_to_date(&self) -> Result<(), Error> {
        self.seen(self.log.head()).await
    }

    async fn seen(&self, position: Position) -> Result<(), Error> {
        match self.known.reach(position, VIEW_WITHIN).await {
            true => Ok(()),
            false => Err(Error::Behind),
        }
    }

    async fn write(
        &self,
        id: EventId,
        tenant: &Tenant,
        name: &SecretName,
        version: SecretVersion,
        value: &SecretValue,
    ) -> Result<(), Error> {
        let about = About {
            tenant: tenant.clone(),
            name: name.clone(),
            version,
        };
        let sealed = seal::seal(&self.master, &about, value.reveal());
        let written = self.on_disk(move |store| store.put(id, &sealed)).await;
        if written.is_err() {
            // Half of it may be there, and nobody will ever name it.
            self.forget(id).await;
        }
        written
    }

    async fn read(&self, id: EventId) -> Result<Option<seal::Sealed>, Error> {
        self.on_disk(move |store| store.get(id)).await
    }

    async fn shred(&self, id: EventId) -> Result<(), Error> {
        self.on_disk(move |store| store.shred(id)).await
    }

    /// As [`Inner::shred`], where it can wait for the next start.
    async fn forget(&self, id: EventId) {
        if let Err(error) = self.shred(id).await {
            tracing::warn!(role = "api-gateway", %id, error = %chain(&error), "a record that nobody names stays until the next start");
        }
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, crate::store::StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        match done {
            Ok(done) => done.map_err(Error::from),
            Err(_) => Err(Error::Stopping),
        }
    }
}

/// The event that names a value.
fn named(name: &SecretName, version: SecretVersion, before: Option<Held>) -> Event {
    let name = name.clone();
    match before {
        None => SecretRegistered { name, version }.into(),
        Some(_) => SecretRotated { name, version }.into(),
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("store", &self.0.store)
            .finish_non_exhaustive()
    }
}
