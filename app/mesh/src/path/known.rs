//! One path as its agent knows it: what speaks for it, and what was asked on it.

use smoltcp::time::{Duration, Instant};

use super::Path;

/// LIMIT: pings of one path whose pongs are waited for; older ones are forgotten.
const ASKED_MAX: usize = 6;
/// A pong that comes later than this proves nothing any more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A path that was lost is not chosen for this long, doubled each time up to the maximum.
const HOLD_DOWN: Duration = Duration::from_secs(1);
const HOLD_DOWN_MAX: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) path: Path,
    /// The peer or the resolver names it; else it was only seen.
    pub(super) told: bool,
    /// When it last was proven to lead both ways.
    pub(super) proven: Option<Instant>,
    /// When authentic data that is no replay last came on it.
    pub(super) heard: Option<Instant>,
    /// Smoothed.
    pub(super) rtt: Option<Duration>,
    /// When it was last pinged.
    pub(super) pinged: Option<Instant>,
    /// Pings since the last pong.
    pub(super) lost: u32,
    hold: Option<Instant>,
    strikes: u32,
    asked: Vec<(u64, Instant)>,
}

impl Known {
    pub(super) const fn new(path: Path, told: bool) -> Self {
        Self {
            path,
            told,
            proven: None,
            heard: None,
            rtt: None,
            pinged: None,
            lost: 0,
            hold: None,
            strikes: 0,
            asked: Vec::new(),
        }
    }

    /// Less is better.
    pub(super) fn class(&self) -> u8 {
        u8::from(self.path.is_relayed())
    }

    /// Notes a ping with this id.
    pub(super) fn ask(&mut self, id: u64, now: Instant) {
        if self.asked.len() >= ASKED_MAX {
            self.asked.remove(0);
        }
        self.asked.push((id, now));
        self.pinged = Some(now);
        self.lost = self.lost.saturating_add(1);
    }

    /// Takes a pong; whether it answers a ping of this path in time.
    pub(super) fn answer(&mut self, id: u64, now: Instant) -> bool {
        let Some(at) = self.asked.iter().position(|(asked, _)| *asked == id) else {
            return false;
        };
        let (_, sent) = self.asked.remove(at);
        if now > sent + ANSWER_TIMEOUT {
            return false;
        }
        let sample = now - sent;
        self.rtt = Some(match self.rtt {
            Some(rtt) => (rtt * 7 + sample) / 8,
            None => sample,
        });
        self.prove(now);
        true
    }

    /// Whether it was pinged so short a time ago that the pong may still come.
    pub(super) fn is_asked(&self, now: Instant) -> bool {
        self.pinged
            .is_some_and(|pinged| now < pinged + ANSWER_TIMEOUT)
    }

    /// It leads both ways.
    pub(super) fn prove(&mut self, now: Instant) {
        self.proven = Some(now);
        self.heard = Some(now);
        self.lost = 0;
    }

    /// Whether it was proven within `span`.
    pub(super) fn is_proven(&self, span: Duration, now: Instant) -> bool {
        self.proven.is_some_and(|proven| now < proven + span)
    }

    /// Whether anything came on it within `span`.
    pub(super) fn is_heard(&self, span: Duration, now: Instant) -> bool {
        self.heard.is_some_and(|heard| now < heard + span)
    }

    /// Whether it was lost a short while ago.
    pub(super) fn is_held(&self, now: Instant) -> bool {
        self.hold.is_some_and(|hold| now < hold)
    }

    /// It leads nowhere any more: only new proof, after a while, makes it eligible.
    pub(super) fn distrust(&mut self, now: Instant) {
        // One that was good for long begins anew.
        let calm = HOLD_DOWN_MAX * 2;
        if self.hold.is_some_and(|hold| now > hold + calm) {
            self.strikes = 0;
        }
        let span = (HOLD_DOWN * (1 << self.strikes.min(6))).min(HOLD_DOWN_MAX);
        self.hold = Some(now + span);
        self.strikes = self.strikes.saturating_add(1);
        self.proven = None;
        self.heard = None;
        self.rtt = None;
        self.asked.clear();
        self.lost = 0;
    }

    /// The order of choice.
    pub(super) fn rank(&self) -> (u8, Duration) {
        (self.class(), self.rtt.unwrap_or(Duration::from_secs(1)))
    }
}
