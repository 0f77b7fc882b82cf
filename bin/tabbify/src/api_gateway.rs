//! The api-gateway of `tabbify up`: the vault. The node hands it values over a socket in the data
//! directory, with its callers' own tokens; instances fetch theirs over the mesh, known by their keys.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;

use anyhow::Context as _;
use serde::Deserialize;
use tabbify_api::auth::Identity;
use tabbify_api::log::{EventLog, LogAccess, LogEngine as _, LogScope};
use tabbify_api::secrets::{VAULT_PORT, Vault as Asked};
use tabbify_auth::Auth;
use tabbify_gateway::{Deps, MasterKey, RemoteVault, Service, Vault};
use tabbify_log::RateLimited;
use tabbify_process::connect::UnixSocket;
use tabbify_process::{Clock, Importance, Tasks};
use tabbify_types::{Segment, SegmentGlob};

use crate::data_dir::DataDir;
use crate::member::Member;
use crate::secret::Secret;
use crate::substrate::{Substrate, bind};

/// Name of the vault's socket in the data directory.
const VAULT_SOCKET: &str = "vault.sock";
/// Name of the vault's master key among the keys, unless it is elsewhere.
const MASTER_KEY: &str = "vault.key";

/// `[vault]`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Section {
    /// Where its master key is: `file:PATH` or `env:NAME`. Default: `keys/vault.key` in the data
    /// directory, made at the first start.
    pub(crate) master_key: Option<Secret>,
}

impl Section {
    /// Opens the vault and serves it to the node; gives the service, which is served over the mesh too.
    pub(crate) async fn start(
        &self,
        data: &DataDir,
        substrate: &Substrate,
        auth: &Auth,
        clock: &Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> anyhow::Result<Service> {
        let deps = Deps {
            log: substrate.log.client(Vault::log_scope()),
            writers: Arc::new(Callers(Arc::clone(&substrate.limited))),
            tokens: Arc::new(auth.checker()),
            master: self.master_key(data)?,
            clock: Arc::clone(clock),
            tasks: tasks.clone(),
        };
        let (dir, snapshots) = (data.path().join("vault"), data.snapshots());
        let vault = Vault::open(&dir, Some(&snapshots), deps).await;
        let service = Service::new(vault.context("[vault]")?, tasks);
        let listener = bind(data.path(), VAULT_SOCKET)?;
        let local = service.clone();
        tasks.spawn("vault service", Importance::Essential, async move {
            local.serve_unix(listener).await;
        });
        Ok(service)
    }

    fn master_key(&self, data: &DataDir) -> anyhow::Result<MasterKey> {
        let key = match &self.master_key {
            Some(reference) => MasterKey::from_text(&reference.read("[vault] master_key")?),
            None => MasterKey::load_or_create(&data.keys().join(MASTER_KEY)),
        };
        key.context("[vault] master_key")
    }
}

/// The vault as the node has it: it takes values in, and gives none out.
pub(crate) fn of_node(data: &DataDir, tasks: &Tasks) -> Arc<dyn Asked> {
    let socket = UnixSocket {
        directory: data.path().to_path_buf(),
        name: VAULT_SOCKET.to_owned(),
    };
    Arc::new(RemoteVault::new(Arc::new(socket), tasks))
}

/// Where instances of a machine that has joined find the vault; nowhere if the platform is too old for one.
pub(crate) fn of_instances(member: &Member) -> Option<SocketAddrV6> {
    let machines = member.machines("api-gateway");
    machines.first().map(|machine| on(*machine))
}

/// The vault on a machine.
pub(crate) const fn on(machine: Ipv6Addr) -> SocketAddrV6 {
    SocketAddrV6::new(machine, VAULT_PORT, 0, 0)
}

/// What people ask of the vault is written in their name, in their tenant's segment of secrets.
#[derive(Debug)]
struct Callers(Arc<RateLimited>);

impl LogAccess for Callers {
    fn of(&self, caller: &Identity) -> Arc<dyn EventLog> {
        let secrets = SegmentGlob::from(&Segment::secrets(&caller.tenant));
        self.0.client(LogScope {
            actor: caller.subject.clone(),
            write: vec![secrets.clone()],
            read: vec![secrets],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_master_key_is_made_or_referred_to() {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::choose(Some(home.path().join("data"))).unwrap();
        data.create().unwrap();
        std::fs::create_dir_all(data.keys()).unwrap();
        let made = Section::default().master_key(&data).unwrap().to_text();
        let again = Section::default().master_key(&data).unwrap().to_text();
        assert_eq!(*made, *again);
        let refer = |to: String| Section {
            master_key: Some(Secret(to)),
        };
        let file = data.keys().join(MASTER_KEY);
        let read = refer(format!("file:{}", file.display()));
        assert_eq!(*read.master_key(&data).unwrap().to_text(), *made);
        // The key itself is no reference, and is not repeated.
        let inline = refer(made.to_string()).master_key(&data).unwrap_err();
        assert!(!format!("{inline:#}").contains(made.as_str()), "{inline:#}");
        assert!(refer("file:/nowhere".to_owned()).master_key(&data).is_err());
    }
}
