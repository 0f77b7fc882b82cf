//! What a name means to whoever asks: an app or a machine that policy lets the asker reach, or nobody.

use std::net::Ipv6Addr;

use tabbify_api::BoxFuture;
use tabbify_api::coordinator::Ask;
use tabbify_api::names::{MeshName, NameAsk, NameError, Named, Names};
use tabbify_api::policy::{Party, Who};
use tabbify_types::{AppId, AppUla, HostName, MeshKey};

use crate::app::App;
use crate::coordinator::Coordinator;
use crate::leases::{Holder, app_behind, holder};
use crate::refusal::Refusal;
use crate::state::State;
use crate::stats::count;

/// Names as the member with this key sees them, asked in this process.
#[derive(Debug, Clone)]
pub struct NamesOf {
    coordinator: Coordinator,
    asker: MeshKey,
}

impl Coordinator {
    /// Names as the member with the key `asker` sees them.
    #[must_use]
    pub fn names_of(&self, asker: MeshKey) -> NamesOf {
        let coordinator = self.clone();
        NamesOf { coordinator, asker }
    }

    /// What a name means to the member with the key `asker`.
    ///
    /// # Errors
    /// [`Refusal::NotAMember`]; [`Refusal::Nobody`] also where policy forbids that the two talk.
    pub(crate) fn name_for(&self, asker: &MeshKey, ask: &NameAsk) -> Result<Named, Refusal> {
        let counters = &self.0.counters;
        let found = self.read(|state| {
            let asker = holder(state, Ask::Key(*asker)).ok_or(Refusal::NotAMember)?;
            let found = find(state, ask);
            let admitted = found
                .filter(|(_, party)| state.policy.may_find(&asker.party(), party))
                .map(|(named, _)| named);
            admitted.ok_or_else(|| Refusal::Nobody(ask.clone()))
        })?;
        count(match found {
            Ok(_) => &counters.named,
            Err(_) => &counters.unnamed,
        });
        found
    }
}

/// What is meant, whoever asks, and what policy knows of it.
fn find(state: &State, ask: &NameAsk) -> Option<(Named, Party)> {
    match ask {
        NameAsk::Name(MeshName::App { app, tenant }) => {
            let id = state.names.get(&(tenant.clone(), app.clone()))?;
            state.apps.get(id).map(|app| app_named(*id, app))
        }
        NameAsk::Name(MeshName::Host(host)) => host_named(state, host),
        NameAsk::Address(address) => match state.host_addresses.get(address) {
            Some(host) => host_named(state, host),
            None => {
                let id = app_behind(state, *address)?;
                state.apps.get(&id).map(|app| app_named(id, app))
            }
        },
    }
}

fn app_named(id: AppId, app: &App) -> (Named, Party) {
    let name = MeshName::App {
        app: app.name.clone(),
        tenant: app.tenant.clone(),
    };
    let address: Ipv6Addr = AppUla::derive(id).addr();
    let party = Party {
        who: Who::App(id),
        tenant: app.tenant.clone(),
        tags: Vec::new(),
    };
    (Named { name, address }, party)
}

fn host_named(state: &State, host: &HostName) -> Option<(Named, Party)> {
    let peer = state.hosts.get(host)?;
    let named = Named {
        name: MeshName::Host(host.clone()),
        address: peer.address.addr(),
    };
    Some((named, Holder::Host(peer).party()))
}

impl Names for NamesOf {
    fn find(&self, ask: NameAsk) -> BoxFuture<'_, Result<Named, NameError>> {
        Box::pin(async move {
            let look = || self.coordinator.name_for(&self.asker, &ask);
            let found = self.coordinator.find(look).await;
            found.map_err(|refusal| match refusal {
                Refusal::Nobody(ask) => NameError::Unknown(ask),
                other => NameError::Unreachable(other.to_string()),
            })
        })
    }
}
