//! What ends is renewed in time, and a coordinator that says nothing more is asked why: a machine that was
//! removed is told so, one that was cut off says where it looks.

use std::time::Duration;

use tabbify_api::{ErrorCode, Problem};
use tabbify_membership::{JoinFailed, Membership, RequestFailed};
use tabbify_process::chain;
use tabbify_types::{Digest, Timestamp};
use tokio::time::{sleep, timeout};

use super::{Kept, Member};
use crate::data_dir::DataDir;
use crate::way::Named;

/// LIMIT: the shortest and the longest pause between two renewals.
const RENEW_AFTER: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(6 * 3600));
/// LIMIT: how long the coordinator may be silent before it is asked, at first and at most; doubles with each
/// time that it does not speak again.
const SILENT: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(300));

/// Where a machine keeps what it is told.
pub(super) struct Keeping {
    pub(super) data: DataDir,
    pub(super) coordinator: Named,
    pub(super) pin: Digest,
}

impl Keeping {
    fn keep(&self, membership: &Membership) {
        let kept = Kept {
            coordinator: self.coordinator.text().to_owned(),
            known: self.coordinator.known(),
            pin: self.pin,
            membership: membership.clone(),
        };
        if let Err(error) = kept.write(&self.data) {
            tracing::warn!(error = format!("{error:#}"), "the membership is not kept");
        }
    }
}

/// What was said last of a renewal that did not come: each state is told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Nothing,
    Away,
    Refused,
}

impl Member {
    /// Renews for ever what ends, at half of its life, and asks when the coordinator is silent.
    pub(super) async fn renew(&self, kept: Option<Keeping>) {
        let (mut said, mut patience) = (Said::Nothing, SILENT.0);
        loop {
            let due = renew_after(&self.current(), self.0.clock.now());
            // Whichever comes first: the time, or the silence.
            let _ = timeout(due, self.silence(patience)).await;
            match self.0.coordinator.certificate(&self.0.signing).await {
                Ok(membership) => {
                    if said != Said::Nothing {
                        tracing::info!("the certificate is renewed again");
                    }
                    said = Said::Nothing;
                    if let Some(kept) = &kept {
                        kept.keep(&membership);
                    }
                    self.learn(membership);
                }
                Err(JoinFailed::Request(RequestFailed::Refused(problem))) => {
                    if said != Said::Refused {
                        self.say_refused(&problem);
                    }
                    said = Said::Refused;
                }
                Err(error) => {
                    if said != Said::Away {
                        tracing::warn!(error = %chain(&error), "the certificate is not renewed yet");
                    }
                    said = Said::Away;
                }
            }
            patience = match said == Said::Nothing && self.0.coordinator.is_live() {
                true => SILENT.0,
                false => (patience * 2).min(SILENT.1),
            };
        }
    }

    /// Returns once the coordinator has said nothing for that long.
    async fn silence(&self, patience: Duration) {
        loop {
            sleep(patience).await;
            if !self.0.coordinator.is_live() {
                return;
            }
            // Whoever falls silent just before this is seen the next time around.
            let _ = timeout(SILENT.1, self.0.coordinator.unheard()).await;
        }
    }

    /// A person must act: nothing that this process does brings the machine back.
    fn say_refused(&self, problem: &Problem) {
        let host = self.current().certificate.host;
        let (code, detail) = (problem.code.as_str(), &problem.detail);
        match problem.code {
            ErrorCode::Forbidden => tracing::error!(
                %host,
                code,
                detail,
                "the platform does not know this machine any more: it was removed, or its name was given to \
                 another. Its apps run elsewhere. To have it back: `tabbify invite {host}` on the platform's \
                 machine; here, end this process and run `tabbify join` with that token"
            ),
            _ => tracing::error!(%host, code, detail, fix = problem.fix, "not renewed"),
        }
    }
}

/// When to renew: at half of what is left of whatever ends first.
fn renew_after(membership: &Membership, now: Timestamp) -> Duration {
    let (shortest, longest) = RENEW_AFTER;
    let Some(token) = &membership.token else {
        // Auth was away.
        return shortest;
    };
    let ends = membership.certificate.not_after.min(token.expires);
    let left = ends.millis().saturating_sub(now.millis());
    Duration::from_millis(left / 2).clamp(shortest, longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::tests::{NOW, membership};

    #[test]
    fn renewed_at_half_of_what_ends_first() {
        let of = |token| renew_after(&membership(token), NOW).as_secs();
        assert_eq!(of(Some(3600)), 1800);
        assert_eq!(of(Some(1)), 10);
        assert_eq!(of(Some(30 * 24 * 3600)), 6 * 3600);
        assert_eq!(of(None), 10);
        let ended = renew_after(&membership(Some(5)), NOW.plus(Duration::from_secs(99)));
        assert_eq!(ended.as_secs(), 10);
    }
}
