//! Why a log in PostgreSQL cannot be opened or verified.

use std::time::Duration;

use tabbify_types::Position;

use super::schema::FORMAT_VERSION;

/// Why a log in PostgreSQL cannot be opened, verified or filled.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The connection string is malformed. It is not shown: it may hold a password.
    #[error("the connection string of the log's database is malformed")]
    Conninfo(#[source] tokio_postgres::Error),
    /// The name cannot be a schema's.
    #[error("{0:?} cannot name a log's schema: 1 to 63 of a-z 0-9 _, no digit first")]
    Schema(String),
    /// The database does not answer, or refuses.
    #[error("cannot {action} in the log's database")]
    Database {
        /// What was tried: a verb.
        action: &'static str,
        /// Why not.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A setting of the server breaks what the log promises.
    #[error("the log's database has {setting} = {found}; it must be {needed}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        needed: &'static str,
    },
    /// The wait of a commit for the standby was canceled: it may be on one machine only.
    #[error("a commit did not wait for the standby")]
    Unreplicated,
    /// Whoever took the events could not go on, and has said why.
    #[error("reading the log was broken off")]
    Aborted,
    /// There is no log in the schema.
    #[error("schema {schema} of the database holds no log")]
    Missing {
        /// The schema.
        schema: String,
    },
    /// There is a log in the schema already.
    #[error("schema {schema} of the database holds a log already; import into one that holds none")]
    Taken {
        /// The schema.
        schema: String,
    },
    /// A newer program made it.
    #[error(
        "the log in the database has format {version}, and this program knows up to {FORMAT_VERSION}; upgrade it"
    )]
    Newer {
        /// Its format.
        version: i32,
    },
    /// Another process leads the log.
    #[error("{holder} leads the log, and did not end within {waited:?}")]
    Led {
        /// Who.
        holder: String,
        /// How long opening waited for it.
        waited: Duration,
    },
    /// The rows are not what was written.
    #[error("the log in the database is damaged at position {position}: {what}")]
    Damaged {
        /// Where.
        position: Position,
        /// What is wrong there.
        what: String,
    },
}

impl OpenError {
    pub(super) fn database(action: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Database { action, source }
    }

    pub(super) fn damaged(position: Position, what: impl Into<String>) -> Self {
        Self::Damaged {
            position,
            what: what.into(),
        }
    }
}
