//! One suite, every implementation and transport, unchanged: a [`Fixture`] opens a log in its way, and
//! every [`Case`] runs on each.
//!
//! | set-up | where |
//! |---|---|
//! | embedded, in process | here, a test a story and a test a table |
//! | embedded, over HTTP | the same |
//! | PostgreSQL with a synchronous standby, in process | `postgres`, one test for all cases |
//! | the same, over HTTP | the same |

pub(crate) mod case;
mod closing;
mod expects;
mod filters;
mod ids;
mod limits;
mod marks;
mod order;
mod scopes;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tabbify_api::BoxFuture;
use tabbify_api::auth::AuthError;
use tabbify_api::consumers::Consumers as ConsumersTrait;
use tabbify_api::log::{Authorize, EventLog, LogEngine, LogScope};
use tabbify_log::{Consumers, Log, LogId, RemoteLog, Service, UnixSocket};
use tabbify_process::{Importance, SystemClock, Tasks, unix};
use tabbify_types::Position;

use self::case::Case;
use crate::support::{Outcome, Wrong, options, scope};

pub(crate) type Opened = (Box<dyn Served>, Arc<dyn EventLog>);

/// A way to have a log.
pub(crate) trait Fixture: Send + Sync {
    /// The log in a directory, and a client that may do everything.
    fn open<'a>(&'a self, dir: &'a Path, extent_len: u64) -> BoxFuture<'a, Result<Opened, Wrong>>;

    /// Verifies the log of a directory that is closed: its head, and the number of its commits.
    fn verify<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<(Position, u64), Wrong>>;
}

/// A log that is had.
pub(crate) trait Served: Send + Sync {
    /// The log as `scope` may use it.
    fn client(&self, scope: LogScope) -> BoxFuture<'_, Result<Arc<dyn EventLog>, Wrong>>;

    /// Its consumers as `scope` may use them.
    fn consumers(&self, scope: LogScope) -> BoxFuture<'_, Result<Arc<dyn ConsumersTrait>, Wrong>>;

    /// The last durable position, as the engine knows it.
    fn head(&self) -> Position;

    /// Which log the engine has.
    fn log_id(&self) -> LogId;

    /// Closes the engine, so that another may open the log.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// An engine, whatever it stores in.
pub(crate) trait Engine: LogEngine {
    fn log_id(&self) -> LogId;
    fn close(&self) -> BoxFuture<'_, ()>;
}

impl Engine for Log {
    fn log_id(&self) -> LogId {
        Self::log_id(self)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(Self::close(self))
    }
}

/// Opens engines.
pub(crate) trait Store: Send + Sync {
    /// The log of a directory.
    fn engine<'a>(
        &'a self,
        dir: &'a Path,
        extent_len: u64,
    ) -> BoxFuture<'a, Result<Arc<dyn Engine>, Wrong>>;

    /// As [`Fixture::verify`].
    fn verify<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<(Position, u64), Wrong>>;
}

/// The embedded engine, in files of the directory.
pub(crate) struct Embedded;

impl Store for Embedded {
    fn engine<'a>(
        &'a self,
        dir: &'a Path,
        extent_len: u64,
    ) -> BoxFuture<'a, Result<Arc<dyn Engine>, Wrong>> {
        Box::pin(async move {
            let options = options().extent_lens(extent_len, extent_len);
            Ok(Arc::new(Log::open(dir, options)?) as Arc<dyn Engine>)
        })
    }

    fn verify<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<(Position, u64), Wrong>> {
        Box::pin(async move {
            let verified = Log::verify(dir)?;
            Ok((verified.head, u64::try_from(verified.frames)?))
        })
    }
}

/// An engine with its consumers, whose states are in the directory.
struct Hosted {
    engine: Arc<dyn Engine>,
    consumers: Arc<Consumers>,
    tasks: Tasks,
}

impl Hosted {
    async fn open(store: &dyn Store, dir: &Path, extent_len: u64) -> Result<Self, Wrong> {
        let engine = store.engine(dir, extent_len).await?;
        let tasks = Tasks::new();
        let states = dir.join("consumers");
        let log: Arc<dyn LogEngine> = engine.clone();
        let consumers = Consumers::open(&states, log, Arc::new(SystemClock), &tasks).await?;
        Ok(Self {
            engine,
            consumers: Arc::new(consumers),
            tasks,
        })
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// The engine itself.
pub(crate) struct InProcess<S>(pub(crate) S);

impl<S: Store> Fixture for InProcess<S> {
    fn open<'a>(&'a self, dir: &'a Path, extent_len: u64) -> BoxFuture<'a, Result<Opened, Wrong>> {
        Box::pin(async move {
            let hosted = Hosted::open(&self.0, dir, extent_len).await?;
            let client = hosted.engine.client(scope("test", &["**"], &["**"])?);
            Ok((Box::new(hosted) as Box<dyn Served>, client))
        })
    }

    fn verify<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<(Position, u64), Wrong>> {
        self.0.verify(dir)
    }
}

impl Served for Hosted {
    fn client(&self, scope: LogScope) -> BoxFuture<'_, Result<Arc<dyn EventLog>, Wrong>> {
        Box::pin(async { Ok(self.engine.client(scope)) })
    }

    fn consumers(&self, scope: LogScope) -> BoxFuture<'_, Result<Arc<dyn ConsumersTrait>, Wrong>> {
        Box::pin(async { Ok(self.consumers.client(scope)) })
    }

    fn head(&self) -> Position {
        self.engine.head()
    }

    fn log_id(&self) -> LogId {
        self.engine.log_id()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.engine.close()
    }
}

/// The engine behind a service on a unix socket.
pub(crate) struct OverHttp<S>(pub(crate) S);

/// Gives out tokens for scopes, and knows them again.
#[derive(Debug, Default)]
struct Tokens(Mutex<Vec<LogScope>>);

impl Tokens {
    fn token(&self, scope: LogScope) -> String {
        let mut scopes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        scopes.push(scope);
        format!("token-{}", scopes.len() - 1)
    }
}

impl Authorize for Tokens {
    fn authorize(&self, token: &str) -> Result<LogScope, AuthError> {
        let scopes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = token.strip_prefix("token-").and_then(|n| n.parse().ok());
        let scope = index.and_then(|index: usize| scopes.get(index));
        scope
            .cloned()
            .ok_or_else(|| AuthError::Invalid("not one of ours".to_owned()))
    }
}

/// A service, and where it listens.
pub(crate) struct OnSocket {
    hosted: Hosted,
    tokens: Arc<Tokens>,
    socket: tempfile::TempDir,
}

impl OnSocket {
    /// A service of the embedded engine.
    pub(crate) async fn open(dir: &Path, extent_len: u64) -> Result<Self, Wrong> {
        Self::of(&Embedded, dir, extent_len).await
    }

    async fn of(store: &dyn Store, dir: &Path, extent_len: u64) -> Result<Self, Wrong> {
        let hosted = Hosted::open(store, dir, extent_len).await?;
        let tokens = Arc::new(Tokens::default());
        let engine: Arc<dyn LogEngine> = hosted.engine.clone();
        let consumers = hosted.consumers.clone();
        let service = Service::new(engine, consumers, tokens.clone(), &hosted.tasks);
        let socket = tempfile::tempdir()?;
        let listener = unix::bind(socket.path(), "log.sock")?;
        let serving = service.serve_unix(listener);
        hosted
            .tasks
            .spawn("log service", Importance::Essential, serving);
        Ok(Self {
            hosted,
            tokens,
            socket,
        })
    }

    pub(crate) fn token(&self, scope: LogScope) -> String {
        self.tokens.token(scope)
    }

    pub(crate) async fn stream(&self) -> Result<tokio::net::UnixStream, Wrong> {
        Ok(unix::connect(self.socket.path(), "log.sock").await?)
    }

    /// Ends the service; the log goes on.
    pub(crate) fn stop(&self) {
        self.hosted.tasks.stop();
    }

    async fn remote(&self, scope: LogScope) -> Result<RemoteLog, Wrong> {
        let token = self.token(scope);
        let socket = UnixSocket {
            directory: self.socket.path().to_owned(),
            name: "log.sock".to_owned(),
        };
        let bearer = Arc::new(move || token.clone());
        Ok(RemoteLog::connect(Arc::new(socket), bearer, &self.hosted.tasks).await?)
    }
}

impl Served for OnSocket {
    fn client(&self, scope: LogScope) -> BoxFuture<'_, Result<Arc<dyn EventLog>, Wrong>> {
        Box::pin(async { Ok(Arc::new(self.remote(scope).await?) as Arc<dyn EventLog>) })
    }

    fn consumers(&self, scope: LogScope) -> BoxFuture<'_, Result<Arc<dyn ConsumersTrait>, Wrong>> {
        Box::pin(async { Ok(self.remote(scope).await?.consumers()) })
    }

    fn head(&self) -> Position {
        self.hosted.head()
    }

    fn log_id(&self) -> LogId {
        self.hosted.log_id()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.hosted.close()
    }
}

impl<S: Store> Fixture for OverHttp<S> {
    fn open<'a>(&'a self, dir: &'a Path, extent_len: u64) -> BoxFuture<'a, Result<Opened, Wrong>> {
        Box::pin(async move {
            let served = OnSocket::of(&self.0, dir, extent_len).await?;
            let client = served.client(scope("test", &["**"], &["**"])?).await?;
            Ok((Box::new(served) as Box<dyn Served>, client))
        })
    }

    fn verify<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<(Position, u64), Wrong>> {
        self.0.verify(dir)
    }
}

/// Every story and every table as a test of each transport of the embedded engine, and all cases as
/// a list for the others.
macro_rules! suite {
    (@tests $fixture:expr; $($module:ident { $($story:ident)* })*; $($table:ident)*) => {
        $(mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $story() -> Outcome {
                    crate::$module::$story(&$fixture).await
                }
            )*
        })*
        mod tables {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $table() -> Outcome {
                    case::run(Arc::new($fixture), crate::conformance::$table::cases()).await
                }
            )*
        }
    };
    (stories: $($module:ident { $($story:ident)* })*; tables: $($table:ident)*;) => {
        mod in_process {
            use super::*;
            suite!(@tests InProcess(Embedded); $($module { $($story)* })*; $($table)*);
        }
        mod over_http {
            use super::*;
            suite!(@tests OverHttp(Embedded); $($module { $($story)* })*; $($table)*);
        }

        /// All of the suite.
        pub(crate) fn cases() -> Vec<Case> {
            let mut cases = Vec::new();
            $($(
                let name = concat!(stringify!($module), "::", stringify!($story));
                cases.push(Case::new(name, |fixture| Box::pin(crate::$module::$story(fixture))));
            )*)*
            $(cases.extend($table::cases());)*
            cases
        }
    };
}

suite! {
    stories:
    semantics {
        a_batch_is_numbered_and_kept_as_given
        expectations_hold_or_nothing_is_written
        a_repetition_gets_its_first_answer
        an_id_stands_for_one_event_in_one_batch
        limits_are_refused_by_name
        pages_filter_and_go_on_where_they_ended
        a_closed_log_says_so
    }
    subscriptions {
        history_then_caught_up_once_then_live
        what_does_not_match_is_told_as_progress
        a_reader_that_slept_reads_from_disk_and_misses_nothing
        the_end_of_the_log_ends_a_subscription_after_the_last_event
    }
    concurrency {
        positions_are_gapless_and_every_reader_sees_everything_once
        one_of_many_wins_a_revision
        the_same_batch_from_many_at_once_is_written_once
    }
    scope {
        writing_needs_a_glob_for_every_event
        readers_see_what_filter_and_scope_both_select
    }
    consumers {
        work_is_given_acknowledged_and_never_given_again
        what_fails_too_often_is_parked_and_its_key_goes_on
        a_member_that_is_silent_loses_its_event
        a_member_that_waits_is_woken_by_an_append
        many_members_keep_the_order_of_every_key
        beginning_again_gives_everything_again
        whoever_may_not_read_may_not_consume
        bad_requests_are_refused_by_name
    };
    tables: limits ids expects filters scopes marks order closing;
}

/// What only files can show.
mod damage {
    use super::*;

    #[tokio::test]
    async fn in_process() -> Outcome {
        let fixture = InProcess(Embedded);
        crate::subscriptions::damage_under_a_running_log_is_reported_to_readers(&fixture).await
    }

    #[tokio::test]
    async fn over_http() -> Outcome {
        let fixture = OverHttp(Embedded);
        crate::subscriptions::damage_under_a_running_log_is_reported_to_readers(&fixture).await
    }
}

#[test]
fn the_suite_has_its_size_and_every_case_a_name_of_its_own() {
    let cases = cases();
    let names: std::collections::BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len());
    assert!(cases.len() >= 150, "{} cases", cases.len());
}
