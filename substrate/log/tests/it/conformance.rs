//! One suite, every implementation: a [`Fixture`] opens a log in its way, and each case of the suite
//! is a test of each fixture.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tabbify_api::BoxFuture;
use tabbify_api::auth::AuthError;
use tabbify_api::consumers::Consumers as ConsumersTrait;
use tabbify_api::log::{Authorize, EventLog, LogScope};
use tabbify_log::{Consumers, Log, RemoteLog, Service, UnixSocket};
use tabbify_process::{Importance, SystemClock, Tasks, unix};

use crate::support::{Outcome, Wrong, options, scope};

pub(crate) type Opened = (Box<dyn Served>, Arc<dyn EventLog>);

/// A way to have a log.
pub(crate) trait Fixture: Send + Sync {
    /// The log in a directory, and a client that may do everything.
    fn open<'a>(&'a self, dir: &'a Path, extent_len: u64) -> BoxFuture<'a, Result<Opened, Wrong>>;
}

/// A log that is had.
pub(crate) trait Served: Send + Sync {
    /// The log as `scope` may use it.
    fn client(&self, scope: LogScope) -> BoxFuture<'_, Result<Arc<dyn EventLog>, Wrong>>;

    /// Its consumers as `scope` may use them.
    fn consumers(&self, scope: LogScope) -> BoxFuture<'_, Result<Arc<dyn ConsumersTrait>, Wrong>>;

    /// The engine behind it.
    fn log(&self) -> &Log;

    /// Closes the engine, so that another may open the directory.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// An engine with its consumers, whose states are beside the log.
struct Engine {
    log: Arc<Log>,
    consumers: Arc<Consumers>,
    tasks: Tasks,
}

impl Engine {
    async fn open(dir: &Path, extent_len: u64) -> Result<Self, Wrong> {
        let options = options().extent_lens(extent_len, extent_len);
        let log = Arc::new(Log::open(dir, options)?);
        let tasks = Tasks::new();
        let states = dir.join("consumers");
        let consumers =
            Consumers::open(&states, log.clone(), Arc::new(SystemClock), &tasks).await?;
        Ok(Self {
            log,
            consumers: Arc::new(consumers),
            tasks,
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// The engine itself.
pub(crate) struct InProcess;

impl Fixture for InProcess {
    fn open<'a>(&'a self, dir: &'a Path, extent_len: u64) -> BoxFuture<'a, Result<Opened, Wrong>> {
        Box::pin(async move {
            let engine = Engine::open(dir, extent_len).await?;
            let client = engine.log.client(scope("test", &["**"], &["**"])?);
            Ok((Box::new(engine) as Box<dyn Served>, client))
        })
    }
}

impl Served for Engine {
    fn client(&self, scope: LogScope) -> BoxFuture<'_, Result<Arc<dyn EventLog>, Wrong>> {
        Box::pin(async { Ok(self.log.client(scope)) })
    }

    fn consumers(&self, scope: LogScope) -> BoxFuture<'_, Result<Arc<dyn ConsumersTrait>, Wrong>> {
        Box::pin(async { Ok(self.consumers.client(scope)) })
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.log.close())
    }
}

/// The engine behind a service on a unix socket.
pub(crate) struct OverHttp;

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
    engine: Engine,
    tokens: Arc<Tokens>,
    socket: tempfile::TempDir,
}

impl OnSocket {
    pub(crate) async fn open(dir: &Path, extent_len: u64) -> Result<Self, Wrong> {
        let engine = Engine::open(dir, extent_len).await?;
        let tokens = Arc::new(Tokens::default());
        let service = Service::new(
            engine.log.clone(),
            engine.consumers.clone(),
            tokens.clone(),
            &engine.tasks,
        );
        let socket = tempfile::tempdir()?;
        let listener = unix::bind(socket.path(), "log.sock")?;
        let serving = service.serve_unix(listener);
        engine
            .tasks
            .spawn("log service", Importance::Essential, serving);
        Ok(Self {
            engine,
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
        self.engine.tasks.stop();
    }

    async fn remote(&self, scope: LogScope) -> Result<RemoteLog, Wrong> {
        let token = self.token(scope);
        let socket = UnixSocket {
            directory: self.socket.path().to_owned(),
            name: "log.sock".to_owned(),
        };
        let bearer = Arc::new(move || token.clone());
        Ok(RemoteLog::connect(Arc::new(socket), bearer, &self.engine.tasks).await?)
    }
}

impl Served for OnSocket {
    fn client(&self, scope: LogScope) -> BoxFuture<'_, Result<Arc<dyn EventLog>, Wrong>> {
        Box::pin(async { Ok(Arc::new(self.remote(scope).await?) as Arc<dyn EventLog>) })
    }

    fn consumers(&self, scope: LogScope) -> BoxFuture<'_, Result<Arc<dyn ConsumersTrait>, Wrong>> {
        Box::pin(async { Ok(self.remote(scope).await?.consumers()) })
    }

    fn log(&self) -> &Log {
        &self.engine.log
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.engine.log.close())
    }
}

impl Fixture for OverHttp {
    fn open<'a>(&'a self, dir: &'a Path, extent_len: u64) -> BoxFuture<'a, Result<Opened, Wrong>> {
        Box::pin(async move {
            let served = OnSocket::open(dir, extent_len).await?;
            let client = served.client(scope("test", &["**"], &["**"])?).await?;
            Ok((Box::new(served) as Box<dyn Served>, client))
        })
    }
}

/// Every case as a test of every fixture.
macro_rules! suite {
    (@one $fixture:ident: $($module:ident { $($case:ident)* })*) => {$(
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $case() -> Outcome {
                    crate::$module::$case(&$fixture).await
                }
            )*
        }
    )*};
    ($($cases:tt)*) => {
        mod in_process {
            use super::*;
            suite!(@one InProcess: $($cases)*);
        }
        mod over_http {
            use super::*;
            suite!(@one OverHttp: $($cases)*);
        }
    };
}

suite! {
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
        damage_under_a_running_log_is_reported_to_readers
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
    }
}
