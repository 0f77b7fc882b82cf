//! What a consumer decides, without IO: time is told, events are fed, answers are values.
//!
//! The state is two things: `read`, the position up to which events have been looked at, and the
//! events up to there that are not settled. Everything else up to `read` is. So a key that is stuck
//! costs the events that wait behind it, and never a list of all that were settled around it.
//!
//! ```text
//!   held:  3 a  leased ──timer──▶ failed          key a:  leased 3, waiting 7
//!          7 a  waiting for 3
//!          8 b  ready                             key b:  waiting 8
//!          9 c  failed before ──timer──▶ ready    key c:  waiting 9
//! ```
//!
//! INVARIANT: of a key without a lease, exactly the first waiting event is in `ready` or has a timer;
//! of a key with one, none is, and the leased event has the timer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::consumers::{
    Delivered, IN_FLIGHT_MAX, MEMBERS_MAX, MemberName, PARKED_MAX, Parked, REASON_LEN_MAX,
};
use tabbify_types::{Position, Recorded, Segment, Timestamp};

use super::state::{Snapshot, Unsettled};

/// LIMIT: events that one consumer holds in memory, and the bytes of their data. A key with so many
/// events waiting holds up the others, until its first event is settled or parked.
const HELD_EVENTS_MAX: usize = 4096;
const HELD_LEN_MAX: usize = 4 * 1024 * 1024;
/// LIMIT: bytes of data in one answer; it has at least one event.
const ANSWER_LEN_MAX: usize = 1024 * 1024;
/// The pause before the second attempt; doubles with each, up to the ack timeout.
const PAUSE_FIRST: Duration = Duration::from_secs(1);

/// The time of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Now {
    /// Since the consumer was opened; decides.
    pub(crate) elapsed: Duration,
    /// For people; decides nothing.
    pub(crate) wall: Timestamp,
}

/// What a consumer was made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) ack_timeout: Duration,
    pub(crate) attempts_max: u32,
}

/// Why [`Core::take`] gives nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too many events are parked.
    ParkedFull(usize),
    /// Too many members.
    Members,
}

#[derive(Debug)]
struct Held {
    event: Arc<Recorded>,
    failures: u32,
    /// Of the last failure.
    reason: String,
    /// Not given out before.
    due: Duration,
}

#[derive(Debug)]
struct Lease {
    member: MemberName,
    until: Duration,
}

#[derive(Debug, Default)]
struct Key {
    leased: bool,
    waiting: BTreeSet<Position>,
}

type KeyName = (Segment, String);

/// One consumer.
#[derive(Debug)]
pub(crate) struct Core {
    rules: Rules,
    now: Now,
    read: Position,
    /// Changes when the consumer begins again elsewhere: what was on its way then is void.
    generation: u64,
    held: BTreeMap<Position, Held>,
    held_len: usize,
    keys: HashMap<KeyName, Key>,
    ready: BTreeSet<Position>,
    timers: BTreeSet<(Duration, Position)>,
    leases: BTreeMap<Position, Lease>,
    parked: BTreeMap<Position, Parked>,
    /// When each was last heard of.
    members: BTreeMap<MemberName, Duration>,
}

impl Core {
    /// A consumer that has seen nothing after `start`.
    pub(crate) fn new(rules: Rules, start: Position) -> Self {
        Self {
            rules,
            now: Now::default(),
            read: start,
            generation: 0,
            held: BTreeMap::new(),
            held_len: 0,
            keys: HashMap::new(),
            ready: BTreeSet::new(),
            timers: BTreeSet::new(),
            leases: BTreeMap::new(),
            parked: BTreeMap::new(),
            members: BTreeMap::new(),
        }
    }

    /// A consumer as it was when `snapshot` was taken, with nothing leased. `events` are its
    /// unsettled ones; the position of one that is missing is the error.
    pub(crate) fn restore(
        rules: Rules,
        snapshot: Snapshot,
        events: Vec<Arc<Recorded>>,
    ) -> Result<Self, Position> {
        let mut core = Self::new(rules, snapshot.read);
        let mut events: BTreeMap<Position, Arc<Recorded>> = events
            .into_iter()
            .map(|event| (event.position, event))
            .collect();
        for unsettled in snapshot.unsettled {
            let position = unsettled.position;
            let event = events.remove(&position).ok_or(position)?;
            core.hold(event, unsettled.failures, unsettled.reason);
        }
        let parked = snapshot.parked.into_iter();
        core.parked = parked.map(|parked| (parked.position, parked)).collect();
        Ok(core)
    }

    /// What a crash must not lose.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let unsettled = self.held.iter().map(|(position, held)| Unsettled {
            position: *position,
            failures: held.failures,
            reason: held.reason.clone(),
        });
        Snapshot {
            read: self.read,
            unsettled: unsettled.collect(),
            parked: self.parked.values().cloned().collect(),
        }
    }

    pub(crate) const fn read(&self) -> Position {
        self.read
    }

    pub(crate) const fn generation(&self) -> u64 {
        self.generation
    }

    /// Everything up to here is settled.
    pub(crate) fn floor(&self) -> Position {
        let first = self.held.keys().next();
        first.map_or(self.read, |first| Position(first.get().saturating_sub(1)))
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.leases.len()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.held.len() - self.leases.len()
    }

    pub(crate) const fn parked(&self) -> &BTreeMap<Position, Parked> {
        &self.parked
    }

    /// Members that hold events or have asked within the last ack timeout.
    pub(crate) fn members(&self) -> usize {
        let holding = self.holding();
        let known = self.members.iter();
        known
            .filter(|(member, last)| self.counts(&holding, member, **last))
            .count()
    }

    fn holding(&self) -> BTreeSet<MemberName> {
        let leases = self.leases.values();
        leases.map(|lease| lease.member.clone()).collect()
    }

    fn counts(&self, holding: &BTreeSet<MemberName>, member: &MemberName, last: Duration) -> bool {
        holding.contains(member) || last.saturating_add(self.rules.ack_timeout) > self.now.elapsed
    }

    /// Whether another event may be fed.
    pub(crate) fn has_room(&self) -> bool {
        self.held.len() < HELD_EVENTS_MAX && self.held_len < HELD_LEN_MAX
    }

    /// Why [`Core::take`] gives nothing to anybody.
    pub(crate) fn take_is_refused(&self) -> Option<Refused> {
        let parked = self.parked.len();
        (parked >= PARKED_MAX).then_some(Refused::ParkedFull(parked))
    }

    /// When [`Core::take`] may give more than now, if nobody does anything.
    pub(crate) fn wakes(&self) -> Option<Duration> {
        self.timers.first().map(|(when, _)| *when)
    }

    /// Takes in the next matching event.
    pub(crate) fn feed(&mut self, event: Arc<Recorded>) {
        if event.position > self.read {
            self.read = event.position;
            self.hold(event, 0, String::new());
        }
    }

    /// Nothing matched up to here.
    pub(crate) fn skip_to(&mut self, position: Position) {
        self.read = self.read.max(position);
    }

    /// Lets time pass. Whether anything happened.
    pub(crate) fn tick(&mut self, now: Now) -> bool {
        self.now = Now {
            elapsed: now.elapsed.max(self.now.elapsed),
            wall: now.wall,
        };
        let mut changed = false;
        while let Some((when, position)) = self.timers.first().copied() {
            if when > self.now.elapsed {
                break;
            }
            self.timers.pop_first();
            changed = true;
            if self.leases.remove(&position).is_some() {
                let timeout = self.rules.ack_timeout.as_millis();
                self.fail(position, format!("not acknowledged within {timeout} ms"));
            } else {
                self.ready.insert(position);
            }
        }
        changed
    }

    /// Up to `max` events for `member`, oldest first, each leased to it from now on.
    pub(crate) fn take(
        &mut self,
        member: &MemberName,
        max: usize,
        now: Now,
    ) -> Result<Vec<Delivered>, Refused> {
        self.tick(now);
        self.admit(member)?;
        if let Some(refused) = self.take_is_refused() {
            return Err(refused);
        }
        let until = self.now.elapsed.saturating_add(self.rules.ack_timeout);
        let (mut taken, mut len) = (Vec::new(), 0);
        while taken.len() < max && self.leases.len() < IN_FLIGHT_MAX && len < ANSWER_LEN_MAX {
            let Some(position) = self.ready.pop_first() else {
                break;
            };
            let held = self.held.get(&position).expect(HELD);
            let key = self.keys.get_mut(&key_of(&held.event)).expect(KEYED);
            key.waiting.remove(&position);
            key.leased = true;
            let member = member.clone();
            self.leases.insert(position, Lease { member, until });
            self.timers.insert((until, position));
            len += held.event.data.get().len();
            taken.push(Delivered {
                event: Arc::clone(&held.event),
                attempt: held.failures + 1,
            });
        }
        Ok(taken)
    }

    /// Settles those of `positions` that are with `member`; the others are the error.
    pub(crate) fn ack(
        &mut self,
        member: &MemberName,
        positions: &[Position],
        now: Now,
    ) -> Result<(), Vec<Position>> {
        self.tick(now);
        self.heard_of(member);
        let mut others = Vec::new();
        for position in positions {
            if self.end_lease(member, *position) {
                self.settle(*position);
            } else {
                others.push(*position);
            }
        }
        if others.is_empty() {
            Ok(())
        } else {
            Err(others)
        }
    }

    /// Gives back an event that is with `member`. Whether it was.
    pub(crate) fn nack(
        &mut self,
        member: &MemberName,
        position: Position,
        reason: &str,
        now: Now,
    ) -> bool {
        self.tick(now);
        self.heard_of(member);
        let leased = self.end_lease(member, position);
        if leased {
            self.fail(position, shortened(reason));
        }
        leased
    }

    /// Puts a parked event in front of its key again. Whether it was parked.
    pub(crate) fn retry(&mut self, event: Arc<Recorded>) -> bool {
        let parked = self.parked.remove(&event.position).is_some();
        if parked {
            self.hold(event, 0, String::new());
        }
        parked
    }

    /// Forgets a parked event. Whether it was parked.
    pub(crate) fn drop_parked(&mut self, position: Position) -> bool {
        self.parked.remove(&position).is_some()
    }

    /// Begins again after `position`.
    pub(crate) fn reset(&mut self, position: Position) {
        let mut parked = std::mem::take(&mut self.parked);
        parked.split_off(&position.next());
        *self = Self {
            now: self.now,
            generation: self.generation + 1,
            parked,
            members: std::mem::take(&mut self.members),
            ..Self::new(self.rules, position)
        };
    }

    /// Remembers an asking member; forgets those that hold nothing and have not asked for long.
    fn admit(&mut self, member: &MemberName) -> Result<(), Refused> {
        if !self.members.contains_key(member) && self.members.len() >= MEMBERS_MAX {
            let (holding, mut known) = (self.holding(), std::mem::take(&mut self.members));
            known.retain(|member, last| self.counts(&holding, member, *last));
            self.members = known;
            if self.members.len() >= MEMBERS_MAX {
                return Err(Refused::Members);
            }
        }
        self.members.insert(member.clone(), self.now.elapsed);
        Ok(())
    }

    fn heard_of(&mut self, member: &MemberName) {
        if let Some(last) = self.members.get_mut(member) {
            *last = self.now.elapsed;
        }
    }

    /// Ends the lease of `member` on `position` with its timer. Whether there was one.
    fn end_lease(&mut self, member: &MemberName, position: Position) -> bool {
        match self.leases.get(&position) {
            Some(lease) if lease.member == *member => {
                self.timers.remove(&(lease.until, position));
                self.leases.remove(&position);
                true
            }
            _ => false,
        }
    }

    fn hold(&mut self, event: Arc<Recorded>, failures: u32, reason: String) {
        let (position, name) = (event.position, key_of(&event));
        self.held_len += event.data.get().len();
        let held = Held {
            event,
            failures,
            reason,
            due: Duration::ZERO,
        };
        self.held.insert(position, held);
        self.withdraw(&name);
        let key = self.keys.entry(name.clone()).or_default();
        key.waiting.insert(position);
        self.offer(&name);
    }

    /// An attempt at an event whose lease has ended was the last, or another follows after a pause.
    fn fail(&mut self, position: Position, reason: String) {
        let held = self.held.get_mut(&position).expect(HELD);
        held.failures += 1;
        if held.failures >= self.rules.attempts_max {
            let parked = Parked {
                position,
                segment: held.event.segment.clone(),
                key: held.event.key.clone(),
                attempts: held.failures,
                reason,
                at: self.now.wall,
            };
            self.parked.insert(position, parked);
            self.settle(position);
            return;
        }
        held.reason = reason;
        let pause = pause(held.failures, self.rules.ack_timeout);
        held.due = self.now.elapsed.saturating_add(pause);
        let name = key_of(&held.event);
        let key = self.keys.get_mut(&name).expect(KEYED);
        key.leased = false;
        key.waiting.insert(position);
        self.offer(&name);
    }

    /// Lets go of an event whose lease has ended; its key goes on.
    fn settle(&mut self, position: Position) {
        let held = self.held.remove(&position).expect(HELD);
        self.held_len -= held.event.data.get().len();
        let name = key_of(&held.event);
        let key = self.keys.get_mut(&name).expect(KEYED);
        key.leased = false;
        if key.waiting.is_empty() {
            self.keys.remove(&name);
        } else {
            self.offer(&name);
        }
    }

    /// The first waiting event of a key without a lease, and since when it may be given out.
    fn head_of(&self, name: &KeyName) -> Option<(Duration, Position)> {
        let key = self.keys.get(name).filter(|key| !key.leased)?;
        let first = key.waiting.first()?;
        Some((self.held.get(first).expect(HELD).due, *first))
    }

    fn offer(&mut self, name: &KeyName) {
        if let Some((due, first)) = self.head_of(name) {
            if due > self.now.elapsed {
                self.timers.insert((due, first));
            } else {
                self.ready.insert(first);
            }
        }
    }

    /// Takes back what [`Core::offer`] did, before another event comes to stand first.
    fn withdraw(&mut self, name: &KeyName) {
        if let Some((due, first)) = self.head_of(name) {
            self.timers.remove(&(due, first));
            self.ready.remove(&first);
        }
    }
}

const HELD: &str = "INVARIANT: every position in ready, timers, leases and waiting is held";
const KEYED: &str = "INVARIANT: every held event has its key";

fn key_of(event: &Recorded) -> KeyName {
    (event.segment.clone(), event.key.clone())
}

/// The pause after `failures` failures.
pub(crate) fn pause(failures: u32, most: Duration) -> Duration {
    let doubled = 1u32
        .checked_shl(failures.saturating_sub(1))
        .unwrap_or(u32::MAX);
    PAUSE_FIRST.saturating_mul(doubled).min(most)
}

/// At most [`REASON_LEN_MAX`] bytes of `reason`.
fn shortened(reason: &str) -> String {
    let mut end = reason.len().min(REASON_LEN_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

#[cfg(test)]
mod tests;
