//! The watch over the path in use: how soon it is doubted, what is done meanwhile, and when it is given up.
//!
//! It is doubted when data that wants an answer is out and nothing comes back, or when the peer's data comes
//! on a relay instead: that end has given it up before us. From then on a relay gets copies of what is sent, so
//! that connections go on while pings find out; nothing of this happens while nobody sends anything.

use std::sync::Arc;

use smoltcp::time::{Duration, Instant};

use super::{Agent, STALE};
use crate::path::surroundings::Side;
use crate::path::{Path, Wishes, earliest};

/// The path in use is asked this often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Data without an answer for three round trips is doubted, within these: a peer may wait before it
/// acknowledges (40 ms in the kernel's stack), and a round trip that was never measured may be a long one.
const ANSWER_MIN: Duration = Duration::from_millis(300);
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// An unanswered ping is repeated after two round trips, but not sooner than this, on a path in doubt and
/// otherwise, and at most after the maximum.
const RETRY_SUSPECT: Duration = Duration::from_millis(150);
const RETRY: Duration = Duration::from_millis(300);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// So many pings without answer make a path lost: fewer if nothing else comes on it either.
const LOST_SUSPECT: u32 = 3;
const LOST_HEARD: u32 = 8;

impl Agent {
    /// The path in use leads to the peer, as something that came on it shows.
    pub(super) fn trust(&mut self) {
        self.unanswered = None;
        self.passed_by = None;
    }

    /// Notes that data of the peer came on `path`, if it should have come on the path in use.
    pub(super) fn note_passed_by(&mut self, path: Path, now: Instant) {
        let Some(current) = self.current else { return };
        let is_heard = |known: &super::Known| known.is_heard(ANSWER_MIN, now);
        let is_passed_by = path.is_relayed()
            && !current.is_relayed()
            && !self.known(current).is_some_and(is_heard);
        if is_passed_by {
            self.passed_by.get_or_insert(now);
        }
    }

    /// Since when, or from when on, the path in use is in doubt.
    fn suspect_at(&self) -> Option<Instant> {
        let rtt = self.current.and_then(|path| self.known(path)?.rtt);
        let answer = rtt.map_or(ANSWER_MAX, |rtt| (rtt * 3).max(ANSWER_MIN).min(ANSWER_MAX));
        let unanswered = self.unanswered.map(|since| since + answer);
        earliest([unanswered, self.passed_by])
    }

    /// Whether the path in use is in doubt; of a peer that answers no pings it is not known how it would be
    /// out of it.
    pub(super) fn is_suspect(&self, now: Instant) -> bool {
        self.speaks && self.suspect_at().is_some_and(|at| now >= at)
    }

    /// Pings the path in use when it is time, and gives it up when it is lost.
    pub(super) fn watch(&mut self, side: &Arc<Side>, wishes: &mut Wishes, now: Instant) {
        let Some(due) = self.watch_at(side, now).filter(|due| now >= *due) else {
            return;
        };
        let most = if self.suspect_at().is_some_and(|at| now >= at) {
            LOST_SUSPECT
        } else {
            LOST_HEARD
        };
        let (speaks, Some(current)) = (self.speaks, self.current) else {
            return;
        };
        let Some(known) = self.known_mut(current) else {
            return;
        };
        if speaks && known.lost >= most {
            tracing::debug!(?current, ?due, "path lost");
            known.distrust(now);
            self.trust();
            self.choose(now);
            if self.current == Some(current)
                && let Some(relay) = self.relay(side, now)
            {
                // Not proven, but a relay is there to lead where nothing else does.
                self.adopt(relay);
            }
            // The peer may be somewhere else, or we may.
            self.failures = 0;
            self.next_round = None;
            self.around.wanted.notify_one();
            self.release(wishes, now);
        } else {
            self.ask(current, wishes, now);
        }
    }

    /// When the path in use is to be looked at.
    pub(super) fn watch_at(&self, side: &Side, now: Instant) -> Option<Instant> {
        let current = self.current?;
        let known = self.known(current)?;
        let has_other = self.paths.iter().any(|other| other.path != current)
            || side
                .relays
                .iter()
                .any(|n| current != Path::Relayed(*n, self.tag));
        let is_mute = !self.speaks && known.lost >= LOST_SUSPECT;
        if !has_other || is_mute {
            return None;
        }
        let heartbeat = known.proven.map_or(now, |proven| proven + HEARTBEAT);
        let stale = known.heard.map(|heard| heard + STALE);
        let due = earliest([Some(heartbeat), self.suspect_at(), stale])?;
        let soonest = match self.is_suspect(now) {
            true => RETRY_SUSPECT,
            false => RETRY,
        };
        let retry = match known.rtt {
            Some(rtt) => (rtt * 2).max(soonest).min(RETRY_MAX),
            None => RETRY,
        };
        Some(known.pinged.map_or(due, |pinged| due.max(pinged + retry)))
    }
}
