//! The path agent of one peer: knows the paths, proves them, chooses one.
//!
//! Nothing is sent while no data is: an idle peer costs no packets. Data begins on a relay if there is
//! one, and moves to a direct path when that is proven; it moves back when the path goes silent. What
//! decides is only proof: a pong to our own ping on the path that the ping took, or the response to
//! our handshake. Peers that speak no probes (stock WireGuard) are followed to where their data comes
//! from, as WireGuard does.

mod choice;
mod look;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;

use smoltcp::time::{Duration, Instant};

use super::birthday::{Birthday, SPARES};
use super::known::Known;
use super::probe::{CANDIDATES_MAX, Call, Message};
use super::surroundings::Side;
use super::{Candidate, Hint, Path, Seal, Surroundings, Tag, Wishes, earliest};

/// LIMIT: addresses of the resolver's record that are used.
const RECORD_MAX: usize = 8;
/// For this long after the last data there is something to find a path for.
const HOT: Duration = Duration::from_secs(20);
/// A proof is good for this long.
const TRUST: Duration = Duration::from_secs(30);
/// A path on which nothing came for this long (the state that a NAT keeps may be gone) has a relay's
/// company until something comes.
const STALE: Duration = Duration::from_secs(20);
/// A path on which nothing came for this long may be left for another that something comes on.
const SILENT: Duration = Duration::from_secs(1);
/// A path that data was seen on is asked this often at most.
const CURIOUS: Duration = Duration::from_millis(500);
/// When all addresses are pinged in one round; pings of both sides must cross to open both NATs.
const STEPS_MS: [u64; 5] = [0, 100, 300, 700, 1500];
/// The step at which an attempt through a hard NAT begins: those before have shown that it is needed.
const BIRTHDAY_STEP: usize = 3;
/// How long a round waits for the last pongs.
const ROUND_MS: u64 = 2300;
/// From the end of a round to the next, doubled up to the maximum.
const ROUND_PAUSE: Duration = Duration::from_secs(2);
const ROUND_PAUSE_MAX: Duration = Duration::from_secs(60);
/// From one attempt through a hard NAT to the next, doubled each time, and LIMIT: how many. The first
/// is over by then.
const BIRTHDAY_PAUSE: Duration = Duration::from_secs(4);
const BIRTHDAYS_MAX: u32 = 5;
/// A call is not repeated earlier.
const CALL_PAUSE: Duration = Duration::from_millis(500);
/// After so many rounds without any probe from the peer it counts as one that speaks none.
const ROUNDS_UNHEARD_MAX: u32 = 3;

/// What authentic data says about the path that it came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The peer can reach us on it.
    Inward,
    /// It answers a handshake that we sent on it.
    Both,
}

/// Where data goes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Route {
    /// The path in use, or the first to try.
    pub(crate) first: Option<Path>,
    /// Copies go here too, until it is sure that the first still leads there: the engine's replay
    /// window removes doubles.
    pub(crate) second: Option<Path>,
}

/// A salvo of pings to all addresses.
#[derive(Debug)]
struct Round {
    began: Instant,
    step: usize,
}

pub(crate) struct Agent {
    seal: Seal,
    around: Arc<Surroundings>,
    tag: Tag,
    /// The first number of our spare sockets.
    spares: u32,
    dice: u64,
    paths: Vec<Known>,
    /// INVARIANT: set only to a path that authentic data came on.
    current: Option<Path>,
    /// The peer has sent a probe.
    speaks: bool,
    /// From the resolver.
    record: Vec<SocketAddr>,
    /// From the peer's last call.
    theirs: Vec<Candidate>,
    theirs_hard: bool,
    traffic: Option<Instant>,
    /// Since when data is out on the current path that nothing came back for.
    unanswered: Option<Instant>,
    /// Since when the peer's data comes on a relay instead, though nothing comes on the current path.
    passed_by: Option<Instant>,
    round: Option<Round>,
    next_round: Option<Instant>,
    failures: u32,
    /// That of the peer's last call.
    heard_call: u64,
    last_call: Option<Instant>,
    /// What our last call said.
    said: Option<Arc<Side>>,
    birthday: Option<Birthday>,
    birthdays: u32,
    next_birthday: Option<Instant>,
    /// Of all pings of one attempt through a hard NAT.
    stray: Option<u64>,
    changes: u64,
    /// Pings on demand.
    echoes: Vec<look::Echo>,
}

impl Agent {
    /// The agent for the peer with `tag`; `spares` is the first of 256 numbers that are only its own.
    pub(crate) fn new(
        seal: Seal,
        around: Arc<Surroundings>,
        tag: Tag,
        spares: u32,
        seed: u64,
    ) -> Self {
        Self {
            seal,
            around,
            tag,
            spares,
            dice: seed | 1,
            paths: Vec::new(),
            current: None,
            speaks: false,
            record: Vec::new(),
            theirs: Vec::new(),
            theirs_hard: false,
            traffic: None,
            unanswered: None,
            passed_by: None,
            round: None,
            next_round: None,
            failures: 0,
            heard_call: 0,
            last_call: None,
            said: None,
            birthday: None,
            birthdays: 0,
            next_birthday: None,
            stray: None,
            changes: 0,
            echoes: Vec::new(),
        }
    }

    /// What the peer's probes are known by.
    pub(crate) const fn inward_hint(&self) -> Hint {
        self.seal.inward_hint()
    }

    /// The first of the numbers of our spare sockets.
    pub(crate) const fn spares(&self) -> u32 {
        self.spares
    }

    /// The path in use.
    pub(crate) const fn current(&self) -> Option<Path> {
        self.current
    }

    /// The round trip of the path in use, if it was measured.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.known(self.current?)?.rtt
    }

    /// How often the path in use changed.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Both NATs take another port for every destination: guessing ports is hopeless.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.theirs_hard && self.around.side().hard
    }

    /// Whether there is any way to send something.
    pub(crate) fn has_target(&self) -> bool {
        self.current.is_some() || !self.record.is_empty() || !self.around.side().relays.is_empty()
    }

    /// Takes the addresses of the resolver's record; whether none of the earlier ones is among them,
    /// nor the path in use: the peer seems to have been restarted elsewhere.
    pub(crate) fn set_record(&mut self, addresses: &[SocketAddr]) -> bool {
        let record = &addresses[..addresses.len().min(RECORD_MAX)];
        // A peer that only calls us has none to tell; that is no news about where it is.
        if record.is_empty() || self.record == record {
            return false;
        }
        let is_elsewhere = !self.record.iter().any(|old| record.contains(old))
            && self
                .current
                .and_then(Path::address)
                .is_some_and(|current| !record.contains(&current));
        self.record = record.to_vec();
        self.learn();
        if is_elsewhere && let Some(current) = self.current.and_then(|path| self.known_mut(path)) {
            // What was proven is about a place that it seems to have left.
            current.proven = None;
            current.heard = None;
        }
        is_elsewhere
    }

    /// Where data goes.
    pub(crate) fn route(&self, now: Instant) -> Route {
        let Some(current) = self.current else {
            let relay = self.relay(&self.around.side(), now);
            return Route {
                first: relay.or_else(|| self.record.first().copied().map(Path::Direct)),
                second: None,
            };
        };
        let second = if self.is_sure(current, now) && !self.is_suspect(now) {
            None
        } else {
            self.relay(&self.around.side(), now)
        };
        Route {
            first: Some(current),
            second: second.filter(|relay| *relay != current),
        }
    }

    /// Wherever the peer may be, the path in use first.
    pub(crate) fn everywhere(&self) -> Vec<Path> {
        let side = self.around.side();
        let direct = self.record.iter().copied().map(Path::Direct);
        let relays = side.relays.iter().map(|n| Path::Relayed(*n, self.tag));
        let others = direct
            .chain(relays)
            .filter(|path| Some(*path) != self.current);
        self.current.into_iter().chain(others).collect()
    }

    /// Notes that data is sent; whether it is the first for long, so that [`Self::poll`] is due.
    pub(crate) fn sent(&mut self, now: Instant) -> bool {
        let woke = !self.is_hot(now);
        if woke {
            // Whatever failed before: the networks may be others by now.
            self.failures = 0;
            self.next_round = None;
        }
        self.traffic = Some(now);
        woke
    }

    /// Notes that what is sent wants an answer.
    pub(crate) fn expects(&mut self, now: Instant) {
        self.unanswered.get_or_insert(now);
    }

    /// Notes that authentic data, not a replay, came on `path`.
    pub(crate) fn heard(&mut self, path: Path, proof: Proof, wishes: &mut Wishes, now: Instant) {
        self.traffic = Some(now);
        if self.current == Some(path) {
            self.trust();
        }
        let Some(known) = self.meet(path) else {
            return;
        };
        known.heard = Some(now);
        if proof == Proof::Both {
            known.prove(now);
            // The peer's new keys are there: no worse place counts more, unless it is proven too.
            let is_no_worse = self
                .current
                .is_none_or(|current| current.is_relayed() || !path.is_relayed());
            if is_no_worse {
                self.adopt(path);
            } else {
                self.choose(now);
            }
            return;
        }
        let Some(current) = self.current else {
            self.adopt(path);
            return;
        };
        if current == path {
            return;
        }
        if self.speaks {
            // It has a reason to use another path: find out whether both still lead there.
            self.ask_if_curious(path, wishes, now);
            self.ask_if_curious(current, wishes, now);
            let is_left = self
                .known(current)
                .is_none_or(|used| !used.is_heard(SILENT, now));
            let is_no_worse = current.is_relayed() || !path.is_relayed();
            if is_left && is_no_worse && self.is_fit(path, now) {
                self.adopt(path);
            }
            self.note_passed_by(path, now);
            return;
        }
        let silent = self.unanswered.is_some_and(|since| now >= since + SILENT);
        if silent || !path.is_relayed() {
            self.adopt(path);
        }
    }

    /// Takes a probe; `false` if it is not genuine.
    pub(crate) fn probe(
        &mut self,
        path: Path,
        bytes: &[u8],
        wishes: &mut Wishes,
        now: Instant,
    ) -> bool {
        let Some(message) = self.seal.open(bytes) else {
            return false;
        };
        self.speaks = true;
        match message {
            Message::Ping { id } => {
                let seen = path.address();
                self.say(path, &Message::Pong { id, seen }, wishes);
                // It may be a replay, so it proves nothing; but it is worth a question.
                if self.is_hot(now)
                    && self.meet(path).is_some()
                    && self
                        .known(path)
                        .is_some_and(|known| !known.is_proven(TRUST, now))
                {
                    self.ask_if_curious(path, wishes, now);
                }
            }
            Message::Pong { id, .. } => self.pong(path, id, wishes, now),
            Message::Call(call) => self.call(path, call, wishes, now),
        }
        true
    }

    /// Does what is due.
    pub(crate) fn poll(&mut self, wishes: &mut Wishes, now: Instant) {
        if !self.is_hot(now) {
            self.round = None;
            self.end_birthday(wishes, now);
            return;
        }
        let side = self.around.side();
        if let Some(Path::Relayed(relay, _)) = self.current
            && !side.relays.contains(&relay)
        {
            // We are not connected to it any more; there is no reason to ask it.
            self.current = None;
            self.trust();
            self.choose(now);
        }
        self.watch(&side, wishes, now);
        self.search(&side, wishes, now);
        self.celebrate(&side, wishes, now);
    }

    /// When to poll again, if at all.
    pub(crate) fn poll_at(&self, now: Instant) -> Option<Instant> {
        if !self.is_hot(now) {
            return None;
        }
        let side = self.around.side();
        let search = match &self.round {
            Some(round) => Some(round.due()),
            None if self.needs_search(&side, now) => Some(self.next_round.unwrap_or(now)),
            None => None,
        };
        let birthday = self.birthday.as_ref().map(Birthday::poll_at);
        earliest([self.watch_at(&side, now), search, birthday])
    }

    /// Whether the path in use leaves something to be wished for.
    fn needs_search(&self, side: &Side, now: Instant) -> bool {
        let is_mute = !self.speaks && self.failures >= ROUNDS_UNHEARD_MAX;
        let has_more = self
            .paths
            .iter()
            .any(|known| Some(known.path) != self.current)
            || !side.relays.is_empty();
        let is_direct = self.current.is_some_and(|current| {
            !current.is_relayed() && (!self.speaks || self.is_sure(current, now))
        });
        !is_direct && !is_mute && has_more && self.current.is_some()
    }

    /// Rounds of pings to every address, as long as there is no direct path.
    fn search(&mut self, side: &Arc<Side>, wishes: &mut Wishes, now: Instant) {
        if self.round.is_none() {
            let is_due = self.next_round.is_none_or(|next| now >= next);
            if !self.needs_search(side, now) || !is_due {
                return;
            }
            self.around.wanted.notify_one();
            self.make_call(true, None, side, wishes, now);
            self.round = Some(Round {
                began: now,
                step: 0,
            });
        } else if self.said.as_ref().is_some_and(|said| said != side)
            && self.needs_search(side, now)
            && self.make_call(false, None, side, wishes, now)
        {
            // We have an address that the peer does not know.
            self.round = Some(Round {
                began: now,
                step: 0,
            });
        }
        let Some(round) = &mut self.round else { return };
        if now < round.due() {
            return;
        }
        let step = round.step;
        round.step += 1;
        if step < STEPS_MS.len() {
            self.salvo(step, side, wishes, now);
            if step == BIRTHDAY_STEP && self.needs_search(side, now) {
                self.begin_birthday(side, now);
            }
            return;
        }
        self.round = None;
        let pause = (ROUND_PAUSE * (1 << self.failures.min(6))).min(ROUND_PAUSE_MAX);
        self.next_round = Some(now + pause);
        self.failures = self.failures.saturating_add(1);
    }

    /// Pings every address, and once a round every relay.
    fn salvo(&mut self, step: usize, side: &Side, wishes: &mut Wishes, now: Instant) {
        if step == 0 {
            for relay in &side.relays {
                self.meet(Path::Relayed(*relay, self.tag));
            }
        }
        let current = self.current;
        let targets: Vec<Path> = self
            .paths
            .iter()
            .filter(|known| step == 0 || !known.path.is_relayed())
            .filter(|known| known.told || known.heard.is_some() || known.path.is_relayed())
            .map(|known| known.path)
            .filter(|path| match path {
                Path::Relayed(relay, _) => side.relays.contains(relay),
                Path::Direct(_) => Some(*path) != current,
                Path::Spare(..) => false,
            })
            .collect();
        for target in targets {
            self.ask(target, wishes, now);
        }
    }

    fn begin_birthday(&mut self, side: &Side, now: Instant) {
        let is_due = self.next_birthday.is_none_or(|next| now >= next);
        let is_relayed = self.current.is_some_and(Path::is_relayed);
        let helps = side.hard != self.theirs_hard && self.reflexive().is_some();
        if !is_due || !is_relayed || !helps || self.birthdays >= BIRTHDAYS_MAX {
            return;
        }
        self.next_birthday = Some(now + BIRTHDAY_PAUSE * (1 << self.birthdays));
        self.birthdays += 1;
        self.stray = Some(u64::from_le_bytes(tabbify_process::random()));
        self.birthday = Some(if side.hard {
            Birthday::spray(now)
        } else {
            Birthday::guess(self.roll(), now)
        });
    }

    /// Goes on with an attempt through a hard NAT.
    fn celebrate(&mut self, side: &Side, wishes: &mut Wishes, now: Instant) {
        let Some(birthday) = &mut self.birthday else {
            return;
        };
        let is_guess = birthday.is_guess();
        let (numbers, target, id) = (birthday.poll(now), self.reflexive(), self.stray);
        let is_direct = !self.needs_search(side, now);
        let (Some(numbers), Some(target), Some(id), false) = (numbers, target, id, is_direct)
        else {
            self.end_birthday(wishes, now);
            return;
        };
        let ping = Message::Ping { id };
        for number in numbers {
            let path = if is_guess {
                let port = u16::try_from(number).unwrap_or(u16::MAX);
                Path::Direct(SocketAddr::new(target.ip(), port))
            } else {
                Path::Spare(self.spares + number % SPARES, target)
            };
            self.say(path, &ping, wishes);
        }
    }

    fn end_birthday(&mut self, wishes: &mut Wishes, now: Instant) {
        if self.birthday.take().is_some() {
            self.release(wishes, now);
        }
    }

    /// Lets go of the spare sockets that lead nowhere.
    fn release(&mut self, wishes: &mut Wishes, now: Instant) {
        if self.birthday.is_none() {
            let current = self.current;
            // One that was hit is kept though it is not proven to us: the peer may have had its proof
            // a moment earlier, and may send on it already.
            self.paths.retain(|known| {
                !matches!(known.path, Path::Spare(..))
                    || known.proven.is_some()
                    || known.is_asked(now)
                    || Some(known.path) == current
            });
            let kept = self.paths.iter().filter_map(|known| match known.path {
                Path::Spare(number, _) => Some(number),
                _ => None,
            });
            wishes.release = Some(kept.collect());
        }
    }

    fn pong(&mut self, path: Path, id: u64, wishes: &mut Wishes, now: Instant) {
        if self.note_echo(path, id, now) {
            return;
        }
        let is_stray = self.stray == Some(id);
        let Some(known) = (if is_stray {
            self.meet(path)
        } else {
            self.known_mut(path)
        }) else {
            return;
        };
        if known.answer(id, now) {
            if self.current == Some(path) {
                self.trust();
            }
            self.choose(now);
        } else if is_stray {
            // It hit. Which of the many pings it was is proven by one of its own.
            known.heard = Some(now);
            self.ask_if_curious(path, wishes, now);
        }
    }

    fn call(&mut self, path: Path, call: Call, wishes: &mut Wishes, now: Instant) {
        // Older, or seen before.
        if call.number <= self.heard_call {
            return;
        }
        self.heard_call = call.number;
        self.theirs_hard = call.hard;
        self.theirs = call.candidates;
        let side = self.around.side();
        let is_local = side
            .candidates
            .iter()
            .any(|own| own.address.ip().is_loopback());
        self.theirs
            .retain(|candidate| is_plausible(candidate.address, is_local));
        self.learn();
        // The peer has data for us, or will have.
        self.traffic = Some(now);
        if self.current.is_none() {
            self.meet(path);
        }
        self.around.wanted.notify_one();
        if call.answer {
            self.make_call(false, Some(path), &side, wishes, now);
        }
        let is_direct = self
            .current
            .is_some_and(|current| !current.is_relayed() && self.is_sure(current, now));
        if !is_direct {
            self.round = Some(Round {
                began: now,
                step: 0,
            });
            self.search(&side, wishes, now);
        }
    }

    /// Tells the peer where we may be, over the relays; whether it did.
    fn make_call(
        &mut self,
        answer: bool,
        only: Option<Path>,
        side: &Arc<Side>,
        wishes: &mut Wishes,
        now: Instant,
    ) -> bool {
        let is_early = self.last_call.is_some_and(|last| now < last + CALL_PAUSE);
        let has_news = self.said.as_ref() != Some(side);
        if is_early && !has_news {
            return false;
        }
        let relays = side.relays.iter().map(|n| Path::Relayed(*n, self.tag));
        let mut paths: Vec<Path> = only.map_or_else(|| relays.collect(), |path| vec![path]);
        if paths.is_empty() {
            paths.extend(self.current);
        }
        let candidates = side.candidates.iter().take(CANDIDATES_MAX).copied();
        let call = Message::Call(Call {
            number: self.around.number_call(),
            answer,
            hard: side.hard,
            candidates: candidates.collect(),
        });
        for path in paths {
            self.say(path, &call, wishes);
        }
        self.last_call = Some(now);
        self.said = Some(Arc::clone(side));
        true
    }

    fn ask_if_curious(&mut self, path: Path, wishes: &mut Wishes, now: Instant) {
        let pinged = self.known(path).and_then(|known| known.pinged);
        if pinged.is_none_or(|pinged| now >= pinged + CURIOUS) {
            self.ask(path, wishes, now);
        }
    }

    fn ask(&mut self, path: Path, wishes: &mut Wishes, now: Instant) {
        let id = u64::from_le_bytes(tabbify_process::random());
        if let Some(known) = self.known_mut(path) {
            known.ask(id, now);
            self.say(path, &Message::Ping { id }, wishes);
        }
    }

    fn say(&self, path: Path, message: &Message, wishes: &mut Wishes) {
        let probe = self.seal.seal(message, tabbify_process::random());
        wishes.probes.push((path, probe));
    }

    fn is_hot(&self, now: Instant) -> bool {
        self.traffic.is_some_and(|traffic| now < traffic + HOT)
    }

    /// Where to begin guessing is no secret.
    fn roll(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice
    }
}

impl Round {
    /// When its next step is due.
    fn due(&self) -> Instant {
        let offset = STEPS_MS.get(self.step).copied().unwrap_or(ROUND_MS);
        self.began + Duration::from_millis(offset)
    }
}

/// Whether a peer may name it: what is everybody's, or only ours, is not where the peer is; but an
/// endpoint that is only on the loopback interface meets its like there.
fn is_plausible(address: SocketAddr, is_local: bool) -> bool {
    let ip = address.ip();
    let is_elsewhere = is_local || !ip.is_loopback();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && is_elsewhere
}
