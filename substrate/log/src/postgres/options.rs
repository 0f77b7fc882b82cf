//! How a log in PostgreSQL is opened.

use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use tabbify_process::Clock;
use tokio_postgres::Config;
use tokio_postgres::config::TargetSessionAttrs;

use super::error::OpenError;

/// The schema of a log that is not told another.
const SCHEMA: &str = "tabbify_log";
/// LIMIT: bytes of a schema's name, so that PostgreSQL never cuts it.
const SCHEMA_LEN_MAX: usize = 63;
/// How long a leader may be silent before another may take over. Only how soon that happens depends
/// on it: a writer that has lost its epoch cannot commit, however its clock runs.
const LEASE: Duration = Duration::from_secs(10);
/// LIMIT: how long opening waits for a leader that is there to end.
const ELECT_WITHIN: Duration = Duration::from_secs(60);
/// LIMIT: how long a commit may take, outages and elections of the database included. Appends that
/// wait longer are told that the log is stopping, and it is.
const OUTAGE_MAX: Duration = Duration::from_secs(60);
/// LIMIT: how long connecting to one host may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How often a follower looks without having been woken: a lost notification delays by this much.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// What becomes of a database that does not wait for a synchronous standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standby {
    /// It is refused: with the loss of its machine, acknowledged events would be lost.
    Required,
    /// It is used, with a warning at every start.
    Missed,
}

/// Where a log is and how it is led.
#[derive(Clone)]
pub struct Options {
    pub(super) config: Config,
    pub(super) schema: String,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) standby: Standby,
    pub(super) lease: Duration,
    pub(super) elect_within: Duration,
    pub(super) outage_max: Duration,
    pub(super) poll_every: Duration,
}

impl Options {
    /// A log in the schema `tabbify_log` of the database that `conninfo` names, a connection string
    /// or URL as of libpq, with several hosts if they stand in for each other. Connections are not
    /// encrypted: use a unix socket or the mesh.
    ///
    /// # Errors
    /// [`OpenError::Conninfo`]; it does not tell the text, which may hold a password.
    pub fn new(conninfo: &str, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let mut config = Config::from_str(conninfo).map_err(OpenError::Conninfo)?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_WITHIN);
        }
        if config.get_application_name().is_none() {
            config.application_name("tabbify-log");
        }
        // A standby takes connections too and would take no append.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        Ok(Self {
            config,
            schema: SCHEMA.to_owned(),
            clock,
            standby: Standby::Required,
            lease: LEASE,
            elect_within: ELECT_WITHIN,
            outage_max: OUTAGE_MAX,
            poll_every: POLL_EVERY,
        })
    }

    /// Another schema, so that one database can have several logs. It is also the channel of its
    /// notifications.
    ///
    /// # Errors
    /// [`OpenError::Schema`], if it is not 1 to 63 bytes of `a-z 0-9 _`, the first one no digit.
    pub fn schema(mut self, name: &str) -> Result<Self, OpenError> {
        let sound = (1..=SCHEMA_LEN_MAX).contains(&name.len())
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !sound {
            return Err(OpenError::Schema(name.to_owned()));
        }
        name.clone_into(&mut self.schema);
        Ok(self)
    }

    /// What becomes of a database without a synchronous standby.
    #[must_use]
    pub const fn standby(mut self, standby: Standby) -> Self {
        self.standby = standby;
        self
    }

    /// How long a silent leader keeps its epoch, how long opening waits for one to end, and how
    /// long a commit may take with all outages.
    #[must_use]
    pub const fn times(
        mut self,
        lease: Duration,
        elect_within: Duration,
        outage_max: Duration,
    ) -> Self {
        self.lease = lease;
        self.elect_within = elect_within;
        self.outage_max = outage_max;
        self
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("schema", &self.schema)
            .field("standby", &self.standby)
            .finish_non_exhaustive()
    }
}
