//! Step 4, first half: which instances serve an app now, and a connection to one of them.

use std::sync::Arc;

use tabbify_types::{AppId, InstanceId};

use crate::dial::DialError;
use crate::error::Refusal;
use crate::node::Node;
use crate::pool::{At, Failed, Take, Upstream};

/// The instances of an app that may get a new request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Replicas {
    /// None that the view knows of: the app's address may lead to one all the same.
    Unknown,
    /// This one: the common case, which costs no memory.
    One(InstanceId),
    /// These, at least two.
    Several(Arc<[InstanceId]>),
}

impl Replicas {
    /// Those.
    pub(crate) fn of(instances: impl IntoIterator<Item = InstanceId>) -> Self {
        let mut instances = instances.into_iter();
        match (instances.next(), instances.next()) {
            (None, _) => Self::Unknown,
            (Some(only), None) => Self::One(only),
            (Some(first), Some(second)) => {
                Self::Several([first, second].into_iter().chain(instances).collect())
            }
        }
    }

    /// Whether `instance` is one of them.
    pub(crate) fn contain(&self, instance: InstanceId) -> bool {
        match self {
            Self::Unknown => false,
            Self::One(one) => *one == instance,
            Self::Several(several) => several.contains(&instance),
        }
    }

    /// Who is left when one could not be dialed, and whether it is worth a try.
    fn without(&self, failed: &Failed) -> Option<Self> {
        let is_gone = matches!(failed.error, DialError::NoLease(_) | DialError::Refused(_));
        match self {
            Self::Unknown if failed.at.is_none() => None,
            // One that is silent may only be slow.
            Self::One(one) if failed.at == Some(*one) && !is_gone => None,
            _ => Some(self.but(failed.at)),
        }
    }

    /// Who is left without one that is there no more.
    fn but(&self, gone: At) -> Self {
        match self {
            // Nobody is there any more, at least not under this number: who has taken over, the log is
            // about to say, and the app's address says already.
            Self::One(one) if gone == Some(*one) => Self::Unknown,
            Self::Unknown | Self::One(_) => self.clone(),
            Self::Several(several) => {
                let others = several.iter().copied();
                Self::of(others.filter(|it| gone != Some(*it)))
            }
        }
    }
}

impl Node {
    fn replicas(&self, app: AppId) -> Replicas {
        self.projection.read(|view| {
            let found = view.app(app);
            found.map_or(Replicas::Unknown, |app| app.replicas())
        })
    }

    /// A connection to an instance of `app`. If it cannot be dialed, nothing was sent yet, and another
    /// instance is tried: once.
    ///
    /// # Errors
    /// [`Refusal::Dial`], of the last that was tried.
    pub(crate) async fn upstream(&self, app: AppId, take: Take) -> Result<Upstream, Refusal> {
        let replicas = self.replicas(app);
        let timeouts = &self.config.timeouts;
        let within = match replicas {
            Replicas::Several(_) => timeouts.connect.min(timeouts.elsewhere),
            Replicas::Unknown | Replicas::One(_) => timeouts.connect,
        };
        let failed = match self.pool.get(app, &replicas, take, within).await {
            Ok(upstream) => return Ok(upstream),
            Err(failed) => failed,
        };
        // Looked at again: the switch to another instance may have come while we waited.
        let Some(others) = self.replicas(app).without(&failed) else {
            return Err(Refusal::Dial(failed.error));
        };
        let instance = failed.at.map(InstanceId::get);
        tracing::debug!(%app, instance, error = %failed.error, "another instance is tried");
        self.pool.goes_elsewhere();
        let tried = self.pool.get(app, &others, take, timeouts.connect).await;
        tried.map_err(|failed| Refusal::Dial(failed.error))
    }

    /// A new connection to another instance than `broken`, which broke a new connection off before it answered:
    /// it was about to go. If there is no other, whoever the app's address leads to. What broke off before
    /// anything `was_sent` is as good as a dial that failed; a request that was let in may itself be what the
    /// instance chokes on, so only the second in a row says that the instance is to be left alone.
    ///
    /// # Errors
    /// [`Refusal::Dial`].
    pub(crate) async fn upstream_but(
        &self,
        app: AppId,
        broken: At,
        was_sent: bool,
    ) -> Result<Upstream, Refusal> {
        let others = self.replicas(app).but(broken);
        tracing::debug!(%app, instance = broken.map(InstanceId::get), "another instance is asked");
        if was_sent {
            self.pool.broke(app, broken);
        } else {
            self.pool.failed(app, broken);
        }
        self.pool.goes_elsewhere();
        let within = self.config.timeouts.connect;
        let tried = self.pool.get(app, &others, Take::New, within).await;
        tried.map_err(|failed| Refusal::Dial(failed.error))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};

    use super::*;

    fn id(n: u32) -> InstanceId {
        InstanceId(n)
    }

    fn failed(at: At, error: fn(SocketAddrV6) -> DialError) -> Failed {
        let error = error(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 0, 0));
        Failed { at, error }
    }

    #[test]
    fn who_is_tried_next() {
        let of = |numbers: &[u32]| Replicas::of(numbers.iter().copied().map(InstanceId));
        assert_eq!(of(&[]), Replicas::Unknown);
        assert_eq!(of(&[3]), Replicas::One(id(3)));
        assert!(of(&[3, 4]).contain(id(4)) && !of(&[3, 4]).contain(id(5)));
        let check = |now: &[u32], failed: Failed, expected: Option<Replicas>| {
            assert_eq!(of(now).without(&failed), expected, "{now:?} {failed:?}");
        };
        let refused = |n| failed(Some(id(n)), DialError::Refused);
        let late = |n| failed(Some(id(n)), DialError::TimedOut);
        check(&[1, 2], late(1), Some(of(&[2])));
        check(&[1, 2, 3], refused(2), Some(of(&[1, 3])));
        // The set has changed while the dial was under way.
        check(&[4], late(1), Some(of(&[4])));
        check(&[], late(1), Some(Replicas::Unknown));
        // The only one: gone, or silent.
        check(&[1], refused(1), Some(Replicas::Unknown));
        check(
            &[1],
            failed(Some(id(1)), DialError::NoLease),
            Some(Replicas::Unknown),
        );
        check(&[1], late(1), None);
        // The app's address was the last resort.
        check(&[], failed(None, DialError::NoLease), None);
        check(&[1], failed(None, DialError::NoLease), Some(of(&[1])));
    }

    #[test]
    fn who_is_asked_when_one_goes_under_a_request() {
        let of = |numbers: &[u32]| Replicas::of(numbers.iter().copied().map(InstanceId));
        let check = |now: &[u32], gone: Option<u32>, expected: &[u32]| {
            assert_eq!(
                of(now).but(gone.map(InstanceId)),
                of(expected),
                "{now:?} {gone:?}"
            );
        };
        check(&[1, 2], Some(1), &[2]);
        check(&[1, 2, 3], Some(2), &[1, 3]);
        check(&[1], Some(1), &[]);
        check(&[2], Some(1), &[2]);
        check(&[], Some(1), &[]);
        check(&[], None, &[]);
        check(&[1], None, &[1]);
    }
}
