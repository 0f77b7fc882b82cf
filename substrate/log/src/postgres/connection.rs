//! A connection: opened, watched for warnings, its server checked.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tabbify_process::{Importance, Tasks, chain};
use tokio::sync::Notify;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use super::error::OpenError;
use super::options::{Options, Standby};

/// What every session of ours is set to, whatever the server's defaults are: commits wait for the
/// standby, nothing is canceled behind our back, and nothing is rounded or translated.
const SESSION: &str = "set synchronous_commit = on; set statement_timeout = 0; set lock_timeout = 0; \
     set idle_in_transaction_session_timeout = 0; set default_transaction_isolation = 'read committed'; \
     set client_min_messages = warning";

/// One session with the database. Dropping it ends it.
pub(super) struct Connection {
    pub(super) client: Client,
    warned: Arc<AtomicBool>,
    notified: Arc<Notify>,
}

impl Connection {
    /// Connects to the first host that takes writes.
    pub(super) async fn open(options: &Options, tasks: &Tasks) -> Result<Self, OpenError> {
        let connecting = options.config.connect(NoTls).await;
        let (client, mut connection) = connecting.map_err(OpenError::database("connect"))?;
        let (warned, notified) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        let (warning, notifying) = (Arc::clone(&warned), Arc::clone(&notified));
        let driving = async move {
            while let Some(message) =
                std::future::poll_fn(|context| connection.poll_message(context)).await
            {
                match message {
                    Ok(AsyncMessage::Notification(_)) => notifying.notify_one(),
                    Ok(AsyncMessage::Notice(notice)) => {
                        // Comes before the answer that it is about.
                        warning.store(true, Ordering::Release);
                        tracing::warn!(
                            code = notice.code().code(),
                            message = notice.message(),
                            "the log's database warns"
                        );
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(error = %chain(&error), "a connection to the log's database ended");
                        break;
                    }
                }
            }
            notifying.notify_one();
        };
        tasks.spawn("log database connection", Importance::Detached, driving);
        let this = Self {
            client,
            warned,
            notified,
        };
        let set = this.client.batch_execute(SESSION).await;
        set.map_err(OpenError::database("set up a session"))?;
        Ok(this)
    }

    /// Whether the server has warned since this was asked last. A commit with a warning may be on one
    /// machine only: its wait for the standby was canceled.
    pub(super) fn warned(&self) -> bool {
        self.warned.swap(false, Ordering::AcqRel)
    }

    /// Returns when the server has sent a notification, or when the session has ended.
    pub(super) async fn notified(&self) {
        self.notified.notified().await;
    }

    /// Refuses a server on which a commit would promise less than the log does.
    pub(super) async fn check_server(&self, standby: Standby) -> Result<(), OpenError> {
        for (setting, needed) in [
            ("server_encoding", "UTF8"),
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("synchronous_commit", "on"),
        ] {
            let found = self.setting(setting).await?;
            if found != needed {
                return Err(OpenError::Setting {
                    setting,
                    found,
                    needed,
                });
            }
        }
        let setting = "synchronous_standby_names";
        let found = self.setting(setting).await?;
        match (standby, found.trim().is_empty()) {
            (_, false) => Ok(()),
            (Standby::Missed, true) => {
                tracing::warn!(
                    "the log's database has no synchronous standby: what it acknowledges \
                     is on one machine only"
                );
                Ok(())
            }
            (Standby::Required, true) => Err(OpenError::Setting {
                setting,
                found: "nothing".to_owned(),
                needed: "the standbys that a commit waits for, such as ANY 1 (a, b)",
            }),
        }
    }

    async fn setting(&self, name: &str) -> Result<String, OpenError> {
        let ask = "select coalesce(current_setting($1, true), '')";
        let row = self.client.query_one(ask, &[&name]).await;
        Ok(row.map_err(OpenError::database("read a setting"))?.get(0))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("closed", &self.client.is_closed())
            .finish_non_exhaustive()
    }
}
