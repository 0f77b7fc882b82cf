//! What an agent tells about its paths, and pings on demand: for people, who ask why it is not better.

use smoltcp::time::{Duration, Instant};

use super::{Agent, Message};
use crate::path::known::Known;
use crate::path::{CandidateKind, Path, Wishes};
use crate::status::{Examined, PathStatus, Source};

/// LIMIT: pings on demand whose answers are kept; older ones are forgotten.
const ECHOES_MAX: usize = 64;
/// A pong that comes later than this proves nothing, as of any ping.
const PROVES_WITHIN: Duration = Duration::from_secs(5);

/// A ping that somebody asked for.
#[derive(Debug)]
pub(super) struct Echo {
    id: u64,
    path: Path,
    sent: Instant,
    took: Option<Duration>,
}

impl Agent {
    /// Pings on the path in use, or the first to try; says on which, and by which id [`Self::echoed`] knows
    /// the ping. It counts as data, so that a better path is looked for meanwhile; it does not count among
    /// the pings whose silence makes a path lost, for people may ask faster than answers come.
    pub(crate) fn ping(&mut self, wishes: &mut Wishes, now: Instant) -> Option<(Path, u64)> {
        let path = self.route(now).first?;
        self.meet(path)?;
        self.sent(now);
        self.expects(now);
        let id = u64::from_le_bytes(tabbify_process::random());
        self.say(path, &Message::Ping { id }, wishes);
        if self.echoes.len() >= ECHOES_MAX {
            self.echoes.remove(0);
        }
        self.echoes.push(Echo {
            id,
            path,
            sent: now,
            took: None,
        });
        Some((path, id))
    }

    /// How long a ping on demand took, once its answer is there.
    pub(crate) fn echoed(&self, id: u64) -> Option<Duration> {
        let mut echoes = self.echoes.iter();
        echoes.find(|echo| echo.id == id)?.took
    }

    /// Takes a pong, if it answers a ping on demand on the path that the ping took: proof like any other.
    pub(super) fn note_echo(&mut self, path: Path, id: u64, now: Instant) -> bool {
        let mut echoes = self.echoes.iter_mut();
        let waited = echoes.find(|echo| echo.id == id && echo.path == path && echo.took.is_none());
        let Some(echo) = waited else {
            return false;
        };
        let took = now - echo.sent;
        echo.took = Some(took);
        self.around.echoed.notify_waiters();
        // What comes later than this proves nothing any more; the person is told all the same.
        if took <= PROVES_WITHIN
            && let Some(known) = self.known_mut(path)
        {
            known.rtt = Some(known.rtt.map_or(took, |rtt| (rtt * 7 + took) / 8));
            known.prove(now);
            if self.current == Some(path) {
                self.trust();
            }
            self.choose(now);
        }
        true
    }

    /// Every path that is known, and what speaks for it.
    pub(crate) fn examine(&self, now: Instant) -> Examined {
        let since = |at: Option<Instant>| at.map(|at| (now - at).into());
        let status = |known: &Known| PathStatus {
            path: known.path,
            source: self.source_of(known),
            in_use: self.current == Some(known.path),
            proven: since(known.proven),
            heard: since(known.heard),
            asked: since(known.pinged),
            rtt: known.rtt.map(Into::into),
            unanswered: known.lost,
        };
        // Ports that were guessed without an answer are no paths that anybody wants to read about.
        let told = |known: &&Known| {
            known.told || known.heard.is_some() || known.path.is_relayed() || known.lost > 0
        };
        let mut paths: Vec<(bool, &Known)> = self
            .paths
            .iter()
            .filter(told)
            .map(|known| (self.current != Some(known.path), known))
            .collect();
        paths.sort_by_key(|(is_other, known)| (*is_other, known.proven.is_none(), known.rank()));
        Examined {
            paths: paths.into_iter().map(|(_, known)| status(known)).collect(),
            speaks: self.speaks,
            theirs_hard: self.theirs_hard,
            called: self.heard_call > 0,
            tells_reflexive: self.reflexive().is_some(),
            guesses: self.birthdays,
        }
    }

    fn source_of(&self, known: &Known) -> Option<Source> {
        let address = known.path.address()?;
        let mut theirs = self.theirs.iter();
        if let Some(candidate) = theirs.find(|candidate| candidate.address == address) {
            return Some(match candidate.kind {
                CandidateKind::Local => Source::Interface,
                CandidateKind::Reflexive => Source::Stun,
                CandidateKind::Mapped => Source::Mapped,
            });
        }
        let is_on_record = self.record.contains(&address);
        Some(if is_on_record {
            Source::Record
        } else {
            Source::Seen
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::*;
    use crate::PrivateKey;
    use crate::path::Surroundings;

    #[test]
    fn only_the_answer_on_its_own_path_counts() {
        let (ours, theirs) = (PrivateKey::generate(), PrivateKey::generate());
        let around = || Arc::new(Surroundings::new(1));
        let mut near = around().agent(&ours, theirs.public());
        let mut far = around().agent(&theirs, ours.public());
        let at = |n: u8| SocketAddr::from(([192, 0, 2, n], 4000));
        let now = Instant::from_millis(1000);
        near.set_record(&[at(1)]);
        let mut wishes = Wishes::default();
        let (path, id) = near.ping(&mut wishes, now).unwrap();
        assert_eq!(path, Path::Direct(at(1)));
        let [(_, ping)] = &wishes.probes[..] else {
            panic!("{:?}", wishes.probes)
        };
        let mut back = Wishes::default();
        assert!(far.probe(Path::Direct(at(2)), ping, &mut back, now));
        let (_, pong) = &back.probes[0];
        let later = now + Duration::from_millis(30);
        // From elsewhere it is no answer, though it is genuine.
        assert!(near.probe(Path::Direct(at(3)), pong, &mut Wishes::default(), later));
        assert_eq!(near.echoed(id), None);
        assert!(
            near.examine(later)
                .paths
                .iter()
                .all(|path| path.proven.is_none())
        );
        assert!(near.probe(path, pong, &mut Wishes::default(), later));
        assert_eq!(near.echoed(id), Some(Duration::from_millis(30)));
        let proven = near.examine(later);
        let first = &proven.paths[0];
        assert!(
            first.in_use && first.proven.is_some() && proven.speaks,
            "{first:?}"
        );
        assert_eq!(first.source, Some(Source::Record));
        // Once.
        let again = later + Duration::from_millis(5);
        assert!(near.probe(path, pong, &mut Wishes::default(), again));
        assert_eq!(near.echoed(id), Some(Duration::from_millis(30)));

        // However fast somebody asks, silence of these pings alone loses no path.
        for n in 0..200 {
            let asked = again + Duration::from_millis(n);
            near.ping(&mut Wishes::default(), asked).unwrap();
        }
        assert_eq!(near.examine(again).paths[0].unanswered, 0);
    }
}
