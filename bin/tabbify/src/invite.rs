//! `tabbify invite`: a token with which one machine may join, once. For whoever holds the platform's keys.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use tabbify_api::auth::Authority as _;
use tabbify_api::auth::issue::{Caller, Issuer as _, TokenOrder};
use tabbify_auth::{Auth, IssuerKeys, OWNER};
use tabbify_membership::TlsKey;
use tabbify_process::{Clock, SystemClock, Tasks};
use tabbify_token::{OwnerProof, PlatformId};
use tabbify_types::{EventId, HostName, Tenant};

use crate::coordinator::{Record, keys};
use crate::data_dir::DataDir;
use crate::own_token::{self, OwnToken};
use crate::role;
use crate::substrate::log_socket;

/// What a machine may be used for unless it is said: whatever is seen to work on it.
const RUNTIMES: [&str; 3] = ["wasm-http", "docker", "firecracker"];

/// Flags of `tabbify invite`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The name that the machine will have
    host: HostName,
    /// A tag that it will have, such as `role:node`; may be given several times
    #[arg(long = "tag")]
    tags: Vec<String>,
    /// A runtime that it may be used for, such as `wasm-http`; may be given several times [default: all]
    #[arg(long = "runtime", conflicts_with = "no_apps")]
    runtimes: Vec<String>,
    /// Let it run no apps
    #[arg(long)]
    no_apps: bool,
    /// The tenant whose apps it may run [default: all]
    #[arg(long)]
    tenant: Option<Tenant>,
    /// The platform's data directory [default: $XDG_DATA_HOME/tabbify]
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

impl Arguments {
    fn capabilities(&self) -> Vec<String> {
        match (self.no_apps, self.runtimes.as_slice()) {
            (true, _) => Vec::new(),
            (false, []) => RUNTIMES.map(str::to_owned).to_vec(),
            (false, named) => named.to_vec(),
        }
    }
}

/// Writes a join token to standard output, and what to do with it to standard error.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let capabilities = arguments.capabilities();
    let data = DataDir::choose(arguments.data_dir)?;
    let keys = keys(&data)?;
    let path = data.coordinator_key();
    if !path.exists() {
        let dir = data.path().display();
        bail!("no coordinator has been here yet. Run: tabbify up --data-dir {dir}");
    }
    let pin = TlsKey::load_or_create(&path)?.pin();
    let tasks = Tasks::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let platform = PlatformId::of(&keys.root.public());
    let own = OwnToken::new(&IssuerKeys::of(&keys), platform.clone(), Arc::clone(&clock));
    let log = own.connect(&log_socket(&data), &tasks).await;
    let log = log.map_err(|error| own_token::away(error, &data))?;
    let auth = Auth::start(Arc::new(log), &keys, Arc::clone(&clock), &tasks).await?;
    let jti = EventId::mint().to_string();
    let proof = OwnerProof::new(platform, OWNER, &jti, clock.now()).sign(&keys.owner)?;
    let owner = auth.exchange(&proof).await?.token;
    let host = arguments.host;
    let order = TokenOrder::Join {
        host: host.clone(),
        tenant: Some(arguments.tenant.unwrap_or_else(Tenant::system)),
        tags: arguments.tags,
        capabilities,
        coordinator: pin.to_string(),
        life_s: None,
    };
    let issued = auth.issue(Caller::bearer(&owner), order).await;
    // Its connections end with it.
    drop(auth);
    role::stop(&tasks).await?;
    let issued = issued?;
    role::hint(&next(&host, &Record::read(&data), issued.expires));
    role::say(&format!("{}\n", issued.token));
    Ok(())
}

/// What to do with the token. Where the coordinator answers, only it can say.
fn next(host: &HostName, record: &Record, until: tabbify_types::Timestamp) -> String {
    match record.listen {
        Some(listen) if listen.ip().is_unspecified() => format!(
            "On {host}, once, until {until}: tabbify join <this machine's address>:{}\n",
            listen.port()
        ),
        Some(listen) => format!("On {host}, once, until {until}: tabbify join {listen}\n"),
        None => format!(
            "The coordinator is not reachable from other machines yet: set [coordinator] listen, such as \
             \"0.0.0.0:8888\", in the configuration of `tabbify up` and start it again. Then on {host}, \
             once, until {until}: tabbify join <this machine's address>:8888\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use tabbify_types::Timestamp;

    use super::*;

    #[test]
    fn says_where_to_join() {
        let host: HostName = "box2".parse().unwrap();
        let at = |listen: Option<&str>| {
            let listen = listen.map(|text| text.parse().unwrap());
            next(
                &host,
                &Record { listen },
                Timestamp::from_secs(1_800_000_000),
            )
        };
        assert!(at(Some("192.0.2.1:8888")).contains("tabbify join 192.0.2.1:8888"));
        assert!(at(Some("0.0.0.0:9")).contains("address>:9"));
        assert!(at(None).contains("[coordinator] listen"));
    }
}
