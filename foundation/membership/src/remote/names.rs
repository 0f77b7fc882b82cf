//! Names, as the coordinator answers for our key: asked for, checked, remembered for a while.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tabbify_api::names::{MeshName, NAME_PATH, NameAsk, NameError, Named, Names};
use tabbify_api::{BoxFuture, ErrorCode};
use tabbify_types::{AppUla, HostUla, InstanceUla};
use tokio::time::Instant;

use super::{RemoteCoordinator, RequestFailed, count};

/// LIMIT: names that are remembered; when there are more, the one that was asked for first goes.
const NAMES_MAX: usize = 1024;
/// For how long an answer is not asked for again. Who may be reached is asked at every connection; this
/// is only how late one notices that a name has another bearer.
const FRESH: Duration = Duration::from_secs(60);

/// The names that were asked for.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<BTreeMap<NameAsk, (Named, Instant)>>);

impl Asked {
    fn get(&self, ask: &NameAsk) -> Option<(Named, Instant)> {
        self.known().get(ask).cloned()
    }

    fn put(&self, ask: NameAsk, named: Named, now: Instant) {
        let mut known = self.known();
        if known.len() >= NAMES_MAX && !known.contains_key(&ask) {
            let oldest = known.iter().min_by_key(|(_, (_, at))| *at);
            let oldest = oldest.map(|(ask, _)| ask.clone());
            oldest.and_then(|oldest| known.remove(&oldest));
        }
        known.insert(ask, (named, now));
    }

    fn remove(&self, ask: &NameAsk) {
        self.known().remove(ask);
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<NameAsk, (Named, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RemoteCoordinator {
    async fn name(&self, ask: NameAsk) -> Result<Named, NameError> {
        let inner = &self.0;
        // By the clock that nobody sets.
        let now = Instant::now();
        let known = inner.names.get(&ask);
        if let Some((named, at)) = &known
            && now < *at + FRESH
        {
            count(&inner.counters.known);
            return Ok(named.clone());
        }
        count(&inner.counters.asked);
        match self.post::<Named>(NAME_PATH, &ask).await {
            Ok(named) if answers(&ask, &named) => {
                inner.names.put(ask, named.clone(), now);
                Ok(named)
            }
            Ok(_) => {
                count(&inner.counters.forged);
                let why = "the answer is about another name".to_owned();
                Err(NameError::Unreachable(why))
            }
            Err(RequestFailed::Refused(problem)) if problem.code == ErrorCode::UnknownApp => {
                inner.names.remove(&ask);
                Err(NameError::Unknown(ask))
            }
            Err(error) => match known {
                // Whom it leads to is still asked of the leases, which know for how long they count.
                Some((named, _)) => {
                    count(&inner.counters.outage);
                    Ok(named)
                }
                None => Err(NameError::Unreachable(error.to_string())),
            },
        }
    }
}

/// Whether it is what was asked for, with an address that such a thing has.
fn answers(ask: &NameAsk, named: &Named) -> bool {
    let is_right = match ask {
        NameAsk::Name(name) => *name == named.name,
        NameAsk::Address(address) => app_part(*address) == app_part(named.address),
    };
    let fits = match named.name {
        MeshName::App { .. } => AppUla::try_from(named.address).is_ok(),
        MeshName::Host(_) => HostUla::try_from(named.address).is_ok(),
    };
    is_right && fits
}

/// What an app's address and those of its instances have in common; of others, all of it.
fn app_part(address: Ipv6Addr) -> Ipv6Addr {
    if InstanceUla::try_from(address).is_err() {
        return address;
    }
    let [a, b, c, d, e, ..] = address.segments();
    Ipv6Addr::new(a, b, c, d, e, 0, 0, 1)
}

impl Names for RemoteCoordinator {
    fn find(&self, ask: NameAsk) -> BoxFuture<'_, Result<Named, NameError>> {
        Box::pin(self.name(ask))
    }
}

#[cfg(test)]
mod tests {
    use tabbify_types::{AppId, InstanceId};

    use super::*;

    fn app() -> AppId {
        "0191e7c2-1111-7222-8333-444455556666".parse().unwrap()
    }

    #[test]
    fn only_what_was_asked_for_is_an_answer() {
        let shop: MeshName = "shop.main.internal".parse().unwrap();
        let host: MeshName = "box.internal".parse().unwrap();
        let (of_app, of_host) = (AppUla::derive(app()).addr(), HostUla::new(1, 2).addr());
        let of_instance = InstanceUla::derive(app(), InstanceId(3)).addr();
        let other = AppUla::derive(AppId::mint()).addr();
        let check = |ask: NameAsk, name: &MeshName, address: Ipv6Addr, expected: bool| {
            let named = Named {
                name: name.clone(),
                address,
            };
            assert_eq!(answers(&ask, &named), expected, "{ask:?} {named:?}");
        };
        let name = |name: &MeshName| NameAsk::Name(name.clone());
        check(name(&shop), &shop, of_app, true);
        check(
            name(&shop),
            &"other.main.internal".parse().unwrap(),
            of_app,
            false,
        );
        check(name(&shop), &shop, of_host, false);
        check(name(&shop), &shop, of_instance, false);
        check(name(&shop), &shop, Ipv6Addr::LOCALHOST, false);
        check(name(&host), &host, of_host, true);
        check(name(&host), &host, of_app, false);
        check(NameAsk::Address(of_app), &shop, of_app, true);
        check(NameAsk::Address(of_instance), &shop, of_app, true);
        check(NameAsk::Address(of_instance), &shop, other, false);
        check(NameAsk::Address(of_host), &host, of_host, true);
        check(
            NameAsk::Address(of_host),
            &host,
            HostUla::new(1, 3).addr(),
            false,
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let asked = Asked::default();
        let begun = Instant::now();
        let ask = |n: usize| NameAsk::Name(format!("a{n}.main.internal").parse().unwrap());
        for n in 0..=NAMES_MAX {
            let named = Named {
                name: format!("a{n}.main.internal").parse().unwrap(),
                address: AppUla::derive(app()).addr(),
            };
            asked.put(ask(n), named, begun + Duration::from_secs(n as u64));
        }
        assert_eq!(asked.known().len(), NAMES_MAX);
        assert!(asked.get(&ask(0)).is_none() && asked.get(&ask(NAMES_MAX)).is_some());
        asked.remove(&ask(1));
        assert!(asked.get(&ask(1)).is_none());
    }
}
