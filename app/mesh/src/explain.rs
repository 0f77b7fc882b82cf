//! Why there is no direct path to a peer, in words, and what to do about it. Pure.

use crate::path::CandidateKind;
use crate::status::{Examined, OwnStatus, PathStatus, PeerStatus};

/// In words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explanation {
    /// What stands in the way; empty if there is a direct path.
    pub why: Vec<String>,
    /// What could be done.
    pub advice: Vec<String>,
}

impl Explanation {
    fn because(&mut self, why: &str, advice: &str) {
        self.why.push(why.to_owned());
        self.advise(advice);
    }

    fn advise(&mut self, advice: &str) {
        if !advice.is_empty() && !self.advice.iter().any(|known| known == advice) {
            self.advice.push(advice.to_owned());
        }
    }
}

const PORT: &str = "Let the WireGuard port of one of the two machines through (a fixed port, and a rule of \
                    its router or firewall for UDP): one is enough.";
const STUN: &str =
    "Configure a STUN server or a relay; it must be reachable over UDP from this machine.";
const RELAY: &str =
    "Configure a relay that both reach: traffic flows over it at once, and paths are found by it.";

/// Explains how `peer` is reached.
#[must_use]
pub fn explain(own: &OwnStatus, peer: &PeerStatus, examined: &Examined) -> Explanation {
    let mut said = Explanation::default();
    match peer.path {
        Some(path) if !path.is_relayed() => return said,
        Some(_) => {}
        None => unheard(own, examined, &mut said),
    }
    let direct: Vec<&PathStatus> = examined
        .paths
        .iter()
        .filter(|path| !path.path.is_relayed())
        .collect();
    if !examined.speaks && peer.path.is_some() {
        said.because(
            "the peer answers no probes, as stock WireGuard does not: it is reached where its data comes from",
            "",
        );
    }
    if own.hard && examined.theirs_hard {
        said.because(
            "both NATs take another port for every destination (symmetric): neither can tell where it is seen",
            PORT,
        );
    } else if own.hard || examined.theirs_hard {
        let whose = if own.hard { "our" } else { "the peer's" };
        let guessed = match examined.guesses {
            0 if !examined.tells_reflexive => {
                "; the other side does not say how it is seen".to_owned()
            }
            0 => "; ports are guessed when data has flowed for some seconds".to_owned(),
            n => format!("; {n} attempts to guess a port have not led to a proven path yet"),
        };
        let why = format!("{whose} NAT takes another port for every destination{guessed}");
        said.because(&why, PORT);
    }
    if !knows_itself(own) {
        said.because("nobody outside tells us how we are seen", STUN);
    }
    if direct.is_empty() {
        said.because("no direct address of the peer is known", "");
        if !examined.called {
            said.because(
                "it has not said where it may be: it does so over a relay, once there is data",
                RELAY,
            );
        }
    } else if direct
        .iter()
        .all(|path| path.unanswered > 0 && path.heard.is_none())
    {
        let n = direct.len();
        let why = format!("none of {n} direct addresses has answered");
        said.because(&why, PORT);
    } else {
        said.because(
            "a direct address was heard of and is not proven to lead both ways yet; it is looked for while \
             there is data",
            "Try again in some seconds: tabbify mesh ping keeps it looking.",
        );
    }
    said
}

fn unheard(own: &OwnStatus, examined: &Examined, said: &mut Explanation) {
    said.because("nothing was heard of the peer yet", "");
    if own.relays_configured > 0 && own.relays_connected.is_empty() {
        let advice =
            "Look whether the relay runs, and whether this machine may send UDP to it or open TLS.";
        said.because("none of our relays is connected", advice);
    } else if own.relays_configured == 0 && examined.paths.is_empty() {
        said.because("there is no relay, and no address of the peer", RELAY);
    }
}

/// Whether a STUN server or the NAT itself has told how we are seen, or we need not be told.
fn knows_itself(own: &OwnStatus) -> bool {
    own.candidates.iter().any(|candidate| {
        matches!(
            candidate.kind,
            CandidateKind::Reflexive | CandidateKind::Mapped
        )
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use tabbify_types::MeshKey;

    use super::*;
    use crate::path::{Candidate, Path, Tag};
    use crate::status::Source;
    use crate::{PathStatus, StackInUse};

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 1000))
    }

    fn own(hard: bool, seen: bool) -> OwnStatus {
        let candidate = |kind| Candidate {
            address: at(1),
            kind,
        };
        let mut candidates = vec![candidate(CandidateKind::Local)];
        candidates.extend(seen.then(|| candidate(CandidateKind::Reflexive)));
        OwnStatus {
            key: MeshKey([1; 32]),
            addresses: Vec::new(),
            underlay: at(1),
            stack: StackInUse::Kernel { rootless: false },
            candidates,
            hard,
            relays_configured: 1,
            relays_connected: vec![0],
        }
    }

    fn peer(path: Option<Path>) -> PeerStatus {
        PeerStatus {
            key: MeshKey([2; 32]),
            addresses: Vec::new(),
            path,
            rtt: None,
            handshake: None,
            silent: None,
            bytes_in: 0,
            bytes_out: 0,
            changes: 0,
            why_relayed: None,
        }
    }

    fn tried(path: Path, heard: bool) -> PathStatus {
        PathStatus {
            path,
            source: Some(Source::Record),
            in_use: false,
            proven: None,
            heard: heard.then_some(Duration::from_secs(1)),
            asked: Some(Duration::from_secs(1)),
            rtt: None,
            unanswered: 3,
        }
    }

    fn examined(paths: Vec<PathStatus>, theirs_hard: bool) -> Examined {
        Examined {
            paths,
            speaks: true,
            theirs_hard,
            called: true,
            tells_reflexive: true,
            guesses: 2,
        }
    }

    #[test]
    fn every_hindrance_is_named_with_what_helps() {
        let relayed = Some(Path::Relayed(0, Tag([0; 8])));
        let direct = |heard| tried(Path::Direct(at(2)), heard);
        let check = |own: &OwnStatus, peer: &PeerStatus, examined: &Examined, expected: &[&str]| {
            let said = explain(own, peer, examined);
            let all = said.why.join("\n");
            for part in expected {
                assert!(all.contains(part), "{part:?} is not in: {all}");
            }
            assert_eq!(said.why.is_empty(), expected.is_empty(), "{all}");
            said
        };
        let fine = check(
            &own(true, false),
            &peer(Some(Path::Direct(at(2)))),
            &examined(vec![], true),
            &[],
        );
        assert!(fine.advice.is_empty());
        let both = check(
            &own(true, true),
            &peer(relayed),
            &examined(vec![direct(false)], true),
            &["both NATs", "none of 1 direct addresses has answered"],
        );
        assert_eq!(both.advice, [PORT], "said once");
        check(
            &own(false, true),
            &peer(relayed),
            &examined(vec![direct(false)], true),
            &["the peer's NAT", "2 attempts"],
        );
        let unseen = check(
            &own(false, false),
            &peer(relayed),
            &examined(vec![direct(true)], false),
            &["nobody outside tells us", "is not proven to lead both ways"],
        );
        assert!(unseen.advice.iter().any(|advice| advice == STUN));
        let mut silent = examined(vec![], false);
        silent.called = false;
        check(
            &own(false, true),
            &peer(relayed),
            &silent,
            &["no direct address of the peer is known", "has not said"],
        );
        let mut lonely = own(false, true);
        lonely.relays_connected.clear();
        check(
            &lonely,
            &peer(None),
            &examined(vec![direct(false)], false),
            &["nothing was heard", "none of our relays is connected"],
        );
        lonely.relays_configured = 0;
        let said = check(&lonely, &peer(None), &silent, &["there is no relay"]);
        assert!(said.advice.iter().any(|advice| advice == RELAY));
    }
}
