//! `tabbify auth`: the issuer, served to the roles of this machine. As a process of its own on the log
//! of a transaction-node, or inside `tabbify up`; and `tabbify auth rotate`, a new key for it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tabbify_api::auth::Authority as _;
use tabbify_api::log::EventLog;
use tabbify_auth::{Auth, IssuerKeys, KeyRef, Keys, Service};
use tabbify_process::connect::UnixSocket;
use tabbify_process::{Clock, Importance, SystemClock, Tasks, files, signals};
use tabbify_token::PlatformId;

use crate::data_dir::DataDir;
use crate::own_token::OwnToken;
use crate::role;
use crate::secret::Secret;
use crate::substrate::{AUTH_SOCKET, LOG_SOCKET, bind};

/// What `tabbify auth` is told.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[group(skip)]
pub(crate) struct Arguments {
    #[command(flatten)]
    role: role::Arguments,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a new issuer key: it signs from then on, and the one before it counts beside it
    Rotate(Rotate),
}

/// Flags of `tabbify auth rotate`.
#[derive(Debug, clap::Args)]
struct Rotate {
    /// The data directory with the platform's keys [default: $XDG_DATA_HOME/tabbify]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The data directory whose log is served [default: the same]
    #[arg(long)]
    log: Option<PathBuf>,
}

/// Runs the role, or does what the command says.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Some(Command::Rotate(arguments)) => rotate(arguments).await,
        None => alone(arguments.role).await,
    }
}

/// Serves until a signal, whether the log is there or not: without it, to what is known.
async fn alone(arguments: role::Arguments) -> anyhow::Result<()> {
    let section = arguments.config::<Config>()?.auth;
    let data = arguments.data_dir(section.data_dir.clone())?;
    let issuer = section.issuer(&data)?;
    files::private_dir(data.path()).with_context(|| data.path().display().to_string())?;
    let lock = hold(&data)?;
    let tasks = Tasks::new();
    signals::stop_on_signals(&tasks)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let Issuer { keys, platform, .. } = &issuer;
    let own = OwnToken::new(keys, platform.clone(), Arc::clone(&clock));
    let log = own.connect_later(socket(section.log.as_deref(), &data), &tasks);
    let config = tabbify_auth::Config {
        subjects: issuer.subjects,
        snapshots: Some(data.snapshots()),
        ..tabbify_auth::Config::new(issuer.keys)
    };
    let starting = Auth::open(log as Arc<dyn EventLog>, config, clock, &tasks).await;
    if tasks.token().is_cancelled() {
        // It was told to end while it waited for the log.
        return role::stop(&tasks).await;
    }
    let auth = starting?;
    let found = auth.platform().0;
    if found != issuer.platform.to_string() {
        let pinned = issuer.platform;
        bail!("the log is of platform {found}, and the keys are of {pinned}: give the right log");
    }
    own.started(&auth);
    serve_locked(&data, auth, lock, &tasks)?;
    let socket = data.path().join(AUTH_SOCKET);
    role::say(&format!("auth · platform {found} · {}\n", socket.display()));
    tasks.token().cancelled().await;
    own.ended();
    role::stop(&tasks).await
}

/// Answers in the data directory to whoever can open the socket, until the tasks end; gives the service,
/// which may be served elsewhere too.
pub(crate) fn serve(data: &DataDir, auth: Auth, tasks: &Tasks) -> anyhow::Result<Service> {
    serve_locked(data, auth, hold(data)?, tasks)
}

fn serve_locked(data: &DataDir, auth: Auth, lock: File, tasks: &Tasks) -> anyhow::Result<Service> {
    let listener = bind(data.path(), AUTH_SOCKET)?;
    let service = Service::new(auth, tasks);
    let local = service.clone();
    tasks.spawn("auth service", Importance::Essential, async move {
        let _lock = lock;
        local.serve_unix(listener).await;
    });
    Ok(service)
}

/// Becomes the only one who serves auth in the data directory; others may be elsewhere on the same log.
fn hold(data: &DataDir) -> anyhow::Result<File> {
    let path = data.path().join("auth.lock");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options
        .open(&path)
        .with_context(|| path.display().to_string())?;
    if file.try_lock().is_err() {
        let dir = data.path().display();
        bail!(
            "auth is served in {dir} already, by tabbify up or another tabbify auth. Use that, or \
             give another --data-dir"
        );
    }
    Ok(file)
}

/// Where the log is served: in `log`, or in the data directory itself.
fn socket(log: Option<&Path>, data: &DataDir) -> UnixSocket {
    UnixSocket {
        directory: log.unwrap_or_else(|| data.path()).to_path_buf(),
        name: LOG_SOCKET.to_owned(),
    }
}

async fn rotate(arguments: Rotate) -> anyhow::Result<()> {
    let data = DataDir::choose(arguments.data_dir)?;
    let keys = keys(&data)?;
    let socket = socket(arguments.log.as_deref(), &data);
    let tasks = Tasks::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let platform = PlatformId::of(&keys.root.public());
    let own = OwnToken::new(&IssuerKeys::of(&keys), platform, Arc::clone(&clock));
    let log = own.connect(&socket, &tasks).await.with_context(|| {
        let dir = socket.directory.display();
        format!(
            "cannot use the log at {dir}/{LOG_SOCKET}. Is tabbify up or transaction-node running?"
        )
    })?;
    let auth = Auth::start(Arc::new(log), &keys, clock, &tasks).await?;
    let before = kids(&auth);
    let kid = auth.rotate(&keys.root).await?;
    let counting = kids(&auth);
    let mut said = format!("issuer key {kid} signs from now on\n");
    for old in before {
        said += &match counting.contains(&old) {
            true => format!("issuer key {old} counts beside it until the next rotation\n"),
            false => format!("issuer key {old} counts no more: what it signed has ended\n"),
        };
    }
    role::say(&said);
    // Its connections end with it.
    drop(auth);
    role::stop(&tasks).await
}

/// The ids of the issuer keys that count, newest first.
fn kids(auth: &Auth) -> Vec<String> {
    let jwks = auth.jwks();
    let keys = jwks["keys"].as_array().into_iter().flatten();
    keys.filter_map(|key| Some(key["kid"].as_str()?.to_owned()))
        .collect()
}

/// The keys of the data directory, which are not made here.
fn keys(data: &DataDir) -> anyhow::Result<Keys> {
    if !data.keys().is_dir() {
        let dir = data.path().display();
        bail!("{dir} has no keys of a platform. Run: tabbify init --data-dir {dir}");
    }
    Ok(Keys::open(&data.keys())?)
}

/// The file: `[auth]` alone.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    auth: Section,
}

/// `[auth]`.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Section {
    /// The data directory: its socket, and what it knows of the log. Default `$XDG_DATA_HOME/tabbify`.
    data_dir: Option<PathBuf>,
    /// The data directory whose log a transaction-node serves. Default: the same.
    log: Option<PathBuf>,
    /// Where the issuer key is: `file:PATH` or `env:NAME`. Default: `keys` in the data directory, with
    /// those that come by rotation.
    issuer: Option<Secret>,
    /// The platform, as `tabbify init` said it; goes with `issuer`.
    platform: Option<String>,
    /// Where the keys of people are. Default: `keys/subjects` in the data directory; with `issuer`
    /// none: then nobody has a password or is invited here.
    subjects: Option<PathBuf>,
}

/// Who signs, and for whom.
struct Issuer {
    keys: IssuerKeys,
    platform: PlatformId,
    subjects: Option<PathBuf>,
}

impl Section {
    fn issuer(&self, data: &DataDir) -> anyhow::Result<Issuer> {
        let (keys, platform, subjects) = match (&self.issuer, &self.platform) {
            (Some(issuer), Some(platform)) => {
                let reference = issuer.0.parse::<KeyRef>().ok().context(
                    "[auth] issuer takes file:PATH or env:NAME, the place of the key, not the key itself",
                )?;
                let key = reference.read().context("[auth] issuer")?;
                let platform = platform.parse::<PlatformId>().context("[auth] platform")?;
                (IssuerKeys::given([key]), platform, None)
            }
            (Some(_), None) => bail!(
                "[auth] platform is missing: with an issuer key alone, it says whose the log must be. \
                 It is what tabbify init said, and /health says"
            ),
            (None, Some(_)) => {
                bail!("[auth] platform goes with issuer: the data directory's keys say it")
            }
            (None, None) => {
                let keys = keys(data)?;
                let subjects = data.keys().join("subjects");
                let platform = PlatformId::of(&keys.root.public());
                (IssuerKeys::of(&keys), platform, Some(subjects))
            }
        };
        Ok(Issuer {
            keys,
            platform,
            subjects: self.subjects.clone().or(subjects),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_given_or_there_and_never_made() {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::choose(Some(home.path().join("data"))).unwrap();
        let refused = |section: &Section| {
            let refused = section.issuer(&data).err();
            format!("{:#}", refused.expect("it is refused"))
        };
        assert!(refused(&Section::default()).contains("tabbify init"));
        assert!(!data.path().exists());

        let keys = Keys::open(&home.path().join("elsewhere")).unwrap();
        let platform = PlatformId::of(&keys.root.public());
        let file = home.path().join("elsewhere/issuer.key");
        let given = |issuer: &str, platform: Option<String>| Section {
            issuer: Some(Secret(issuer.to_owned())),
            platform,
            ..Section::default()
        };
        let reference = format!("file:{}", file.display());
        let issuer = given(&reference, Some(platform.to_string()));
        let issuer = issuer.issuer(&data).unwrap();
        assert_eq!(issuer.platform, platform);
        assert_eq!(issuer.keys.all()[0].id(), keys.issuer.id());
        assert_eq!(issuer.subjects, None);
        assert!(refused(&given(&reference, None)).contains("platform is missing"));

        let inline = given(&keys.issuer.to_text(), Some(platform.to_string()));
        let text = refused(&inline);
        assert!(!text.contains(keys.issuer.to_text().as_str()), "{text}");
        assert!(text.contains("not the key itself"), "{text}");
        let alone = Section {
            platform: Some(platform.to_string()),
            ..Section::default()
        };
        assert!(refused(&alone).contains("goes with issuer"));
    }

    #[test]
    fn one_serves_in_a_directory() {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::choose(Some(home.path().to_path_buf())).unwrap();
        let held = hold(&data).unwrap();
        assert!(hold(&data).unwrap_err().to_string().contains("already"));
        drop(held);
        hold(&data).unwrap();
    }
}
