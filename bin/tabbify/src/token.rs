//! `tabbify init` makes a platform of an empty data directory; `tabbify token` gives a role that runs
//! alone what it shows to the log. Both are for whoever holds the directory's keys.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use tabbify_api::auth::Authority as _;
use tabbify_api::auth::issue::API_AUDIENCE;
use tabbify_auth::{Auth, IssuerKeys, Keys, bootstrap};
use tabbify_process::{Clock, SystemClock, Tasks, files};
use tabbify_token::PlatformId;

use crate::authorize::ROLES;
use crate::data_dir::DataDir;
use crate::log_settings::Settings;
use crate::own_token::OwnToken;
use crate::role;
use crate::substrate::{Substrate, log_socket};

/// Flags of `tabbify init`.
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// The data directory; default `$XDG_DATA_HOME/tabbify`
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Flags of `tabbify token`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The role: auth, coordinator or read-node
    role: String,
    /// The data directory; default `$XDG_DATA_HOME/tabbify`
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Makes keys and the first events.
pub(crate) async fn init(arguments: Init) -> anyhow::Result<()> {
    let data = DataDir::choose(arguments.data_dir)?;
    data.create()?;
    let _held = data.hold()?;
    let tasks = Tasks::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let keys = Keys::open(&data.keys())?;
    let substrate =
        Substrate::open(&data, &Settings::default(), &keys.root, &clock, &tasks).await?;
    let made = bootstrap(substrate.log.client(Auth::log_scope()).as_ref(), &keys).await;
    let ended = role::stop(&tasks).await;
    substrate.close().await;
    let platform = made?;
    ended?;
    role::say(&format!(
        "platform {platform} · {}\nNext: tabbify transaction-node --data-dir {}\n",
        data.path().display(),
        data.path().display()
    ));
    Ok(())
}

/// Writes a role's token beside the keys, 0600; it lives for a day.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (role, data) = (arguments.role, DataDir::choose(arguments.data_dir)?);
    if !ROLES.contains(&role.as_str()) {
        bail!("{role} is no role that has a token: {}", ROLES.join(", "));
    }
    let keys = Keys::open(&data.keys())?;
    let tasks = Tasks::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let platform = PlatformId::of(&keys.root.public());
    let own = OwnToken::new(&IssuerKeys::of(&keys), platform, Arc::clone(&clock));
    let log = own.connect(&log_socket(&data), &tasks).await?;
    let auth = Auth::start(Arc::new(log), &keys, clock, &tasks).await?;
    let issued = auth.service_token(&role, &[], API_AUDIENCE).await?;
    let path = data.token(&role);
    if let Some(dir) = path.parent() {
        files::private_dir(dir)?;
    }
    files::write_atomic(&path, issued.token.as_bytes(), 0o600)?;
    role::say(&format!(
        "{} · platform {} · until {}\n",
        path.display(),
        auth.platform().0,
        issued.expires
    ));
    // Its connections end with it.
    drop(auth);
    role::stop(&tasks).await
}
