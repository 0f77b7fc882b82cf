//! Being known at a relay over UDP. Sans-IO: frames and the time come in, frames come out.

use std::fmt;
use std::time::Duration;

use tabbify_types::MeshKey;
use tokio::time::Instant;

use crate::path::Tag;
use crate::relay::frame::{COOKIE_LEN, Frame, NONCE_LEN, Token};
use crate::relay::proof::{self, Proofs};

/// An unanswered frame is repeated after this long, doubled each time, LIMIT: so often.
const RETRY: Duration = Duration::from_millis(250);
const ATTEMPTS_MAX: u32 = 4;
/// After that it is left alone for this long.
const PAUSE: Duration = Duration::from_secs(15);
/// The relay is told that we are here, and the NATs, this often.
const KEEP_EVERY: Duration = Duration::from_secs(25);
/// Who answered so short a while ago is not asked again.
const FRESH: Duration = Duration::from_secs(5);

pub(super) struct Registration {
    proofs: Proofs,
    key: MeshKey,
    state: State,
    attempts: u32,
    next: Instant,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Not known, nothing was said.
    Out,
    /// Has said hello.
    Asking { nonce: [u8; NONCE_LEN] },
    /// Has proven itself.
    Proving {
        nonce: [u8; NONCE_LEN],
        cookie: [u8; COOKIE_LEN],
    },
    /// Known.
    In { token: Token },
}

/// What a frame meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    Datagram(Tag),
    Reply(Vec<u8>),
    Changed,
}

impl Registration {
    pub(super) const fn new(proofs: Proofs, key: MeshKey, now: Instant) -> Self {
        Self {
            proofs,
            key,
            state: State::Out,
            attempts: 0,
            next: now,
        }
    }

    /// What goes with every datagram, if we are known.
    pub(super) const fn token(&self) -> Option<Token> {
        match self.state {
            State::In { token } => Some(token),
            State::Out | State::Asking { .. } | State::Proving { .. } => None,
        }
    }

    /// Asks soon whether the relay is still there, or again if it was given up.
    pub(super) fn doubt(&mut self, now: Instant) {
        let is_fresh = self.token().is_some() && self.next > now + KEEP_EVERY - FRESH;
        if self.attempts == 0 && !is_fresh {
            self.next = self.next.min(now);
        }
    }

    /// When to poll.
    pub(super) const fn poll_at(&self) -> Instant {
        self.next
    }

    /// The frame that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now < self.next {
            return None;
        }
        if self.attempts >= ATTEMPTS_MAX {
            // Once more from the beginning: at once if it was there until now.
            let was_in = self.token().is_some();
            self.state = State::Out;
            self.attempts = 0;
            if !was_in {
                self.next = now + PAUSE;
                return None;
            }
        }
        if matches!(self.state, State::Out) {
            let nonce = tabbify_process::random();
            self.state = State::Asking { nonce };
        }
        self.next = now + RETRY * (1 << self.attempts);
        self.attempts += 1;
        let frame = match self.state {
            State::Out => return None,
            State::Asking { nonce } => {
                let key = self.key.0;
                Frame::Hello { key, nonce }.encode()
            }
            State::Proving { nonce, cookie } => self.prove(nonce, cookie),
            State::In { token } => Frame::Keep { token }.encode(),
        };
        Some(frame)
    }

    /// Takes a frame that came from the relay's address.
    pub(super) fn receive(&mut self, frame: &Frame<'_>, now: Instant) -> Heard {
        match (self.state, *frame) {
            (State::In { token: ours }, Frame::Data { token, tag, .. }) if token == ours => {
                Heard::Datagram(tag)
            }
            (State::In { token: ours }, Frame::Kept { token }) if token == ours => {
                self.rest(now);
                Heard::Nothing
            }
            (State::Asking { nonce: ours }, Frame::Cookie { nonce, cookie }) if nonce == ours => {
                self.state = State::Proving { nonce, cookie };
                self.attempts = 1;
                self.next = now + RETRY;
                Heard::Reply(self.prove(nonce, cookie))
            }
            (
                State::Proving {
                    nonce: ours,
                    cookie,
                },
                Frame::Welcome { nonce, token, mac },
            ) if nonce == ours => {
                let expected = self.proofs.by_relay(&[b"udp", &nonce, &cookie, &token]);
                if !proof::is_equal(&expected, &mac) {
                    return Heard::Nothing;
                }
                self.state = State::In { token };
                self.rest(now);
                Heard::Changed
            }
            _ => Heard::Nothing,
        }
    }

    fn rest(&mut self, now: Instant) {
        self.attempts = 0;
        self.next = now + KEEP_EVERY;
    }

    fn prove(&self, nonce: [u8; NONCE_LEN], cookie: [u8; COOKIE_LEN]) -> Vec<u8> {
        let mac = self.proofs.by_peer(&[b"udp", &nonce, &cookie]);
        let key = self.key.0;
        Frame::Prove {
            key,
            nonce,
            cookie,
            mac,
        }
        .encode()
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("is_known", &self.token().is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrivateKey;

    struct Sides {
        registration: Registration,
        relay: Proofs,
        now: Instant,
    }

    fn sides() -> Sides {
        let keys = [1, 2].map(|n| PrivateKey::from_bytes(&[n; 32]));
        let now = Instant::now();
        let proofs = Proofs::of_peer(&keys[0], keys[1].public()).unwrap();
        Sides {
            registration: Registration::new(proofs, keys[0].public(), now),
            relay: Proofs::of_relay(&keys[1], keys[0].public()).unwrap(),
            now,
        }
    }

    /// Registers; the token.
    fn register(sides: &mut Sides) -> Token {
        let now = sides.now;
        let hello = sides.registration.poll(now).unwrap();
        let Some(Frame::Hello { nonce, .. }) = Frame::decode(&hello) else {
            panic!("{hello:?}");
        };
        let cookie = [7; COOKIE_LEN];
        let other = Frame::Cookie {
            nonce: [0; NONCE_LEN],
            cookie,
        };
        assert_eq!(sides.registration.receive(&other, now), Heard::Nothing);
        let Heard::Reply(prove) = sides
            .registration
            .receive(&Frame::Cookie { nonce, cookie }, now)
        else {
            panic!("no proof");
        };
        let Some(Frame::Prove { mac, .. }) = Frame::decode(&prove) else {
            panic!("{prove:?}");
        };
        assert_eq!(mac, sides.relay.by_peer(&[b"udp", &nonce, &cookie]));
        let token = [5; 8];
        let forged = Frame::Welcome { nonce, token, mac };
        assert_eq!(sides.registration.receive(&forged, now), Heard::Nothing);
        let mac = sides.relay.by_relay(&[b"udp", &nonce, &cookie, &token]);
        let welcome = Frame::Welcome { nonce, token, mac };
        assert_eq!(sides.registration.receive(&welcome, now), Heard::Changed);
        token
    }

    #[tokio::test]
    async fn is_known_after_two_round_trips_and_stays_so() {
        let mut sides = sides();
        let token = register(&mut sides);
        assert_eq!(sides.registration.token(), Some(token));
        for _ in 0..10 {
            let at = sides.registration.poll_at();
            assert_eq!(at, sides.now + KEEP_EVERY);
            sides.now = at;
            let keep = sides.registration.poll(at).unwrap();
            assert_eq!(Frame::decode(&keep), Some(Frame::Keep { token }));
            sides.registration.receive(&Frame::Kept { token }, at);
        }
        let tag = Tag([3; 8]);
        let data = |token| Frame::Data {
            token,
            tag,
            payload: b"x",
        };
        assert_eq!(
            sides.registration.receive(&data(token), sides.now),
            Heard::Datagram(tag)
        );
        assert_eq!(
            sides.registration.receive(&data([0; 8]), sides.now),
            Heard::Nothing
        );
    }

    #[tokio::test]
    async fn a_relay_that_is_gone_is_noticed_and_asked_again() {
        let mut sides = sides();
        register(&mut sides);
        sides.registration.doubt(sides.now);
        assert_eq!(
            sides.registration.poll_at(),
            sides.now + KEEP_EVERY,
            "just heard"
        );
        sides.now += FRESH * 2;
        sides.registration.doubt(sides.now);
        let began = sides.registration.poll_at();
        assert_eq!(began, sides.now);
        let (mut frames, mut at) = (0, began);
        while at < began + Duration::from_secs(60) {
            frames += u32::from(sides.registration.poll(at).is_some());
            if sides.registration.token().is_none() {
                break;
            }
            at = sides.registration.poll_at();
        }
        assert!(at < began + Duration::from_secs(10), "{frames} frames");
        // From now on it says hello now and then.
        let mut hellos = 0;
        while at < began + Duration::from_secs(120) {
            at = sides.registration.poll_at();
            hellos += u32::from(sides.registration.poll(at).is_some());
        }
        assert!((10..40).contains(&hellos), "{hellos}");
        sides.now = at;
        // Out, it can begin again at any time.
        sides.registration.state = State::Out;
        (sides.registration.attempts, sides.registration.next) = (0, at);
        register(&mut sides);
    }
}
