//! The one writer: takes pages of the log and folds them, for as long as the process lives.
//!
//! ```text
//!   read page ─▶ fold in one transaction ─▶ tell position ─▶ next page … at the head: wait
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tabbify_api::log::{Delivery, EventLog, Filter, Page, ReadError};
use tabbify_process::{Clock, chain};
use tabbify_types::{Digest, Position, Recorded};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{BATCH_EVENTS_MAX, BESIDE_EVENTS_MAX, RETRY_AFTER, RETRY_AFTER_MAX};
use crate::error::ReadNodeError;
use crate::generation::Generations;
use crate::pool::Pool;
use crate::progress::Progress;
use crate::projection::{self, Claims};
use crate::store::{Found, Store};

/// A rebuild that was asked for; the answer is sent when its content is served.
pub(crate) type Rebuild = oneshot::Sender<Result<Rebuilt, ReadNodeError>>;

/// What a rebuild has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    /// How far the content reached when it was taken into service.
    pub position: Position,
    /// Its digest: the same as before, unless the log or a fold is not what it was.
    pub digest: Digest,
    /// The digest of the content that it replaced, at the same position.
    pub before: Digest,
}

/// What the follower and the node have in common.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) files: Arc<Generations>,
    pub(crate) pool: Pool,
    pub(crate) progress: Arc<watch::Sender<Progress>>,
}

/// Folds the log into a store.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) shared: Shared,
    pub(crate) rebuilds: mpsc::Receiver<Rebuild>,
    /// The path of the store, once it is not current yet: it becomes so when it has caught up.
    pub(crate) unfinished: Option<PathBuf>,
    /// Whether the store could not be judged yet.
    pub(crate) trusted: bool,
}

impl Follower {
    /// Follows until the process ends. What failed is opened again after a while: a full disk may have
    /// room then, a log that was away may be back.
    pub(crate) async fn run(mut self, store: Store, token: CancellationToken) {
        let _end = End(Arc::clone(&self.shared.progress));
        let mut held = Some(store);
        if self.trusted {
            // It is served as it is, and written to only when the log has been asked.
            held = None;
            self.failed("the log is away");
        }
        let mut failures: u32 = 0;
        loop {
            let before = self.shared.progress.borrow().position;
            let Err(error) = self.follow(&mut held, &token).await else {
                return;
            };
            if token.is_cancelled() {
                return;
            }
            let reason = chain(&error).to_string();
            let is_news = self.failed(&reason);
            if error.is_final() {
                tracing::error!(reason, "the read model is not folded any more");
                return;
            }
            if is_news && error.is_away() {
                tracing::warn!(reason, "the log is away; what is folded is served");
            } else if is_news {
                tracing::error!(reason, "the read model is not folded; trying again");
            }
            if error.is_damage() {
                // Nothing in a damaged file is worth keeping: the next opening begins from zero.
                self.forget();
            }
            if self.shared.progress.borrow().position != before {
                failures = 0;
            }
            let rest = RETRY_AFTER * (1 << failures.min(10));
            failures = failures.saturating_add(1);
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(rest.min(RETRY_AFTER_MAX)) => {}
            }
        }
    }

    /// Says why nothing is folded; whether that is news.
    fn failed(&self, reason: &str) -> bool {
        let now = self.shared.clock.now();
        let is_away = |progress: &Progress| progress.stopped.is_some();
        self.shared.progress.send_if_modified(|progress| {
            if !is_away(progress) && progress.position >= progress.head {
                progress.fresh_at = progress.fresh_at.max(now);
            }
            let is_news = progress.stopped.as_deref() != Some(reason);
            progress.stopped = Some(reason.to_owned());
            is_news
        })
    }

    async fn follow(
        &mut self,
        held: &mut Option<Store>,
        token: &CancellationToken,
    ) -> Result<(), ReadNodeError> {
        let mut store = match held.take() {
            Some(store) => store,
            None => self.reopen().await?,
        };
        store = resume_stopped(&self.shared, store).await?;
        loop {
            self.tell(&store);
            let step = tokio::select! {
                () = token.cancelled() => Step::End,
                () = self.shared.pool.damage_seen() => Step::Damaged,
                asked = self.rebuilds.recv() => asked.map_or(Step::End, Step::Rebuild),
                page = next_page(&self.shared.log, store.position()) => Step::Page(page?),
            };
            match step {
                Step::End => return store.close(),
                Step::Damaged => {
                    let path = store.path().to_owned();
                    return Err(ReadNodeError::Damaged { path });
                }
                Step::Rebuild(answer) => store = self.rebuild(store, answer).await?,
                Step::Page(page) => store = self.take(store, page).await?,
            }
        }
    }

    /// Folds a page into the content that is served.
    async fn take(&mut self, store: Store, page: Page) -> Result<Store, ReadNodeError> {
        let store = fold(store, page.events).await?;
        self.folded(&store, page.head)?;
        Ok(store)
    }

    fn forget(&self) {
        if let Err(error) = self.shared.files.forget_current() {
            tracing::error!(error = %chain(&error), "cannot set the damaged read model aside");
        }
    }

    /// Opens the store anew, judged as at the start.
    async fn reopen(&mut self) -> Result<Store, ReadNodeError> {
        let opened = open(&self.shared.files, &self.shared.log).await?;
        self.shared.pool.point_to(opened.store.path());
        self.unfinished = opened.unfinished;
        Ok(opened.store)
    }

    fn tell(&self, store: &Store) {
        let (position, states) = (store.position(), store.states());
        self.shared.progress.send_if_modified(|progress| {
            let is_news = progress.position != position
                || progress.stopped.is_some()
                || progress.states != states;
            progress.position = position;
            progress.stopped = None;
            progress.states = states.to_vec();
            is_news
        });
    }

    /// A page is folded: the content is as fresh as it can be if that was the last one.
    fn folded(&mut self, store: &Store, head: Position) -> Result<(), ReadNodeError> {
        let now = self.shared.clock.now();
        let caught_up = store.position() >= head;
        self.shared.progress.send_modify(|progress| {
            progress.head = progress.head.max(head);
            let as_of = if caught_up { now } else { store.tip_at() };
            progress.fresh_at = progress.fresh_at.max(as_of);
        });
        if caught_up && let Some(path) = self.unfinished.take() {
            self.shared.files.make_current(&path)?;
            self.shared.files.keep_only(&[&path])?;
            tracing::info!(path = %path.display(), "the rebuilt read model is current");
        }
        Ok(())
    }

    /// Builds everything again in a file of its own while the old content is served, and swaps.
    async fn rebuild(&mut self, store: Store, answer: Rebuild) -> Result<Store, ReadNodeError> {
        tracing::info!(from = %store.path().display(), "rebuilding the read model");
        let rebuilt = self.build(store).await;
        self.shared
            .progress
            .send_modify(|progress| progress.rebuilding = None);
        match rebuilt {
            Ok((fresh, rebuilt)) => {
                self.tell(&fresh);
                // Whoever asked may have gone away; the rebuild stands.
                let _ = answer.send(Ok(rebuilt));
                Ok(fresh)
            }
            Err(error) => {
                let reason = chain(&error).to_string();
                let _ = answer.send(Err(ReadNodeError::Unfinished { reason }));
                Err(error)
            }
        }
    }

    async fn build(&mut self, old: Store) -> Result<(Store, Rebuilt), ReadNodeError> {
        let path = self.shared.files.fresh()?;
        let (mut old, mut fresh) = (old, create(&path).await?);
        // Exactly as far as the old content, so that the two can be compared.
        while fresh.position() < old.position() {
            let left = old.position().get() - fresh.position().get();
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            let (log, from) = (&self.shared.log, fresh.position());
            let next = page(log, from, left.min(BATCH_EVENTS_MAX)).await?;
            fresh = fold(fresh, next.events).await?;
            let position = fresh.position();
            self.shared
                .progress
                .send_modify(|progress| progress.rebuilding = Some(position));
            if position < old.position() {
                // What is served goes on meanwhile.
                let next = page(&self.shared.log, old.position(), BESIDE_EVENTS_MAX).await?;
                old = self.take(old, next).await?;
                self.tell(&old);
            }
        }
        let position = fresh.position();
        let (fresh, digest, before) = blocking(position, move || {
            let mut fresh = fresh;
            let digest = fresh.digest()?;
            let mut old = old;
            let before = old.digest()?;
            old.close()?;
            Ok((fresh, digest, before))
        })
        .await?;
        if digest != before {
            tracing::error!(%digest, %before, "the rebuilt read model differs from the one before");
        }
        self.shared.files.make_current(&path)?;
        self.unfinished = None;
        self.shared.pool.point_to(&path);
        self.shared.files.keep_only(&[&path])?;
        let rebuilt = Rebuilt {
            position,
            digest,
            before,
        };
        Ok((fresh, rebuilt))
    }
}

/// Whatever ends the follower, the status says that it has ended.
struct End(Arc<watch::Sender<Progress>>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.send_modify(|progress| {
            let reason = || "the task that folds the log has ended".to_owned();
            progress.stopped.get_or_insert_with(reason);
        });
    }
}

enum Step {
    Page(Page),
    Rebuild(Rebuild),
    Damaged,
    End,
}

/// A store to begin with.
pub(crate) struct Opened {
    pub(crate) store: Store,
    /// Its path, if it is new and must not become current before it has caught up: the one before is
    /// kept until then, since an older program may still want it.
    pub(crate) unfinished: Option<PathBuf>,
    /// Whether it has not been judged, since the log is away.
    pub(crate) trusted: bool,
}

impl Opened {
    const fn current(store: Store) -> Self {
        Self {
            store,
            unfinished: None,
            trusted: false,
        }
    }
}

/// As [`open`]; while the log is away, the current file as it is.
pub(crate) async fn open_or_trust(
    files: &Generations,
    log: &Arc<dyn EventLog>,
) -> Result<Opened, ReadNodeError> {
    let error = match open(files, log).await {
        Err(error) if error.is_away() => error,
        opened => return opened,
    };
    let Some(path) = files.current()? else {
        return Err(error);
    };
    match blocking(Position(0), move || Store::open(&path)).await? {
        Found::Usable(store) => Ok(Opened {
            trusted: true,
            ..Opened::current(store)
        }),
        Found::Unusable(_) => Err(error),
    }
}

/// Opens the current file if it is the fold of a prefix of this log, else begins a new one.
pub(crate) async fn open(
    files: &Generations,
    log: &Arc<dyn EventLog>,
) -> Result<Opened, ReadNodeError> {
    let current = files.current()?;
    let Some(path) = current else {
        files.keep_only(&[])?;
        let path = files.fresh()?;
        let store = create(&path).await?;
        files.make_current(&path)?;
        return Ok(Opened::current(store));
    };
    files.keep_only(&[&path])?;
    let found = path.clone();
    let reason = match blocking(Position(0), move || Store::open(&found)).await? {
        Found::Unusable(reason) => reason,
        Found::Usable(store) if store.position() == Position(0) => {
            return Ok(Opened::current(store));
        }
        Found::Usable(store) => match tip(store.position(), log).await? {
            Ok(event) if store.is_tip(&event) => return Ok(Opened::current(store)),
            Ok(event) => format!(
                "it is of another log: the events at position {} differ",
                event.position
            ),
            Err(reason) => reason,
        },
    };
    let fresh = files.fresh()?;
    tracing::warn!(
        path = %path.display(),
        reason,
        "the read model cannot be used; building it again from the log"
    );
    Ok(Opened {
        store: create(&fresh).await?,
        unfinished: Some(fresh),
        trusted: false,
    })
}

async fn create(path: &Path) -> Result<Store, ReadNodeError> {
    let path = path.to_owned();
    blocking(Position(0), move || Store::create(&path)).await
}

/// What the log has at the position of a store, or why the store cannot be of this log.
async fn tip(
    position: Position,
    log: &Arc<dyn EventLog>,
) -> Result<Result<Arc<Recorded>, String>, ReadNodeError> {
    let beyond = |head: Position| {
        format!("it is at position {position}, beyond the head of the log, {head}")
    };
    let after = Position(position.get().saturating_sub(1));
    match log.read(Filter::default(), after, 1).await {
        Ok(page) => Ok(page
            .events
            .into_iter()
            .next()
            .ok_or_else(|| beyond(page.head))),
        Err(ReadError::BeyondHead { head, .. }) => Ok(Err(beyond(head))),
        Err(source) => Err(ReadNodeError::Log { after, source }),
    }
}

/// Gives projections that have stopped another chance, as after an upgrade: those that understand
/// their event now are brought to where the others are.
async fn resume_stopped(shared: &Shared, mut store: Store) -> Result<Store, ReadNodeError> {
    for projection in projection::ALL {
        let name = projection.name();
        let Claims::Types(kinds) = projection.claims() else {
            continue;
        };
        let filter = Filter {
            kinds: kinds.iter().map(|&kind| kind.to_owned()).collect(),
            ..Filter::default()
        };
        let mut after = match store.states().iter().find(|state| state.name == name) {
            Some(state) if state.position < store.position() => state.position,
            _ => continue,
        };
        loop {
            let read = shared
                .log
                .read(filter.clone(), after, BATCH_EVENTS_MAX)
                .await;
            let page = read.map_err(|source| ReadNodeError::Log { after, source })?;
            let upto = page.next_after;
            store = blocking(after, move || {
                store.resume(name, &page.events, upto)?;
                Ok(store)
            })
            .await?;
            let state = store.states().iter().find(|state| state.name == name);
            let goes_on = state
                .is_some_and(|state| state.stopped.is_none() && state.position < store.position());
            if !goes_on || upto <= after {
                break;
            }
            after = upto;
        }
    }
    Ok(store)
}

/// The events after `after`; waits while there are none.
async fn next_page(log: &Arc<dyn EventLog>, after: Position) -> Result<Page, ReadNodeError> {
    loop {
        let page = page(log, after, BATCH_EVENTS_MAX).await?;
        if !page.events.is_empty() {
            return Ok(page);
        }
        let failed = |source| ReadNodeError::Log { after, source };
        let mut subscription = log.subscribe(Filter::default(), after).map_err(failed)?;
        loop {
            match subscription.next().await.map_err(failed)? {
                Delivery::Event(_) => break,
                Delivery::CaughtUp(_) | Delivery::Progress(_) => {}
            }
        }
    }
}

async fn page(
    log: &Arc<dyn EventLog>,
    after: Position,
    limit: usize,
) -> Result<Page, ReadNodeError> {
    let read = log.read(Filter::default(), after, limit).await;
    read.map_err(|source| ReadNodeError::Log { after, source })
}

async fn fold(store: Store, events: Vec<Arc<Recorded>>) -> Result<Store, ReadNodeError> {
    let mut store = store;
    blocking(store.position(), move || {
        store.fold(&events)?;
        Ok(store)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    after: Position,
    work: impl FnOnce() -> Result<T, ReadNodeError> + Send + 'static,
) -> Result<T, ReadNodeError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ReadNodeError::Panicked { after })?
}
