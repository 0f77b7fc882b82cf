//! Through a hard NAT: the side behind it sends from many ports at once, the other guesses which
//! ports its NAT has given them; that one of the guesses hits is as likely as two birthdays on one
//! day. Says only what to send when.

use smoltcp::time::{Duration, Instant};

/// Sockets that the hard side sends from.
pub(super) const SPARES: u32 = 256;
/// LIMIT: ports that the easy side guesses in one attempt. Of 64,512, with 256 right ones, one is hit
/// with a probability of 99.8 %.
const GUESSES: u32 = 1536;
/// Sent at once, and how long after each other: some 1,300 a second.
const CHUNK: u32 = 64;
const PAUSE: Duration = Duration::from_millis(50);
/// The hard side sends twice, this long after each other: to stay open, and against loss.
const AGAIN: Duration = Duration::from_millis(1500);
/// How long the hard side's sockets wait for a hit.
const PATIENCE: Duration = Duration::from_secs(8);
const PORT_FIRST: u32 = 1024;
const PORTS: u32 = 65_536 - PORT_FIRST;
/// Each leads through all ports, in an order of its own: it has no factor in common with their number,
/// 2^10 · 3^2 · 7.
const STRIDES: [u32; 4] = [20_011, 25_013, 30_011, 40_009];

/// One attempt of one side.
#[derive(Debug)]
pub(super) enum Birthday {
    /// Behind the hard NAT.
    Spray {
        next: u32,
        at: Instant,
        ends: Instant,
    },
    /// Towards the hard NAT.
    Guess {
        next: u32,
        at: Instant,
        start: u32,
        stride: u32,
    },
}

impl Birthday {
    pub(super) fn spray(now: Instant) -> Self {
        Self::Spray {
            next: 0,
            at: now,
            ends: now + PATIENCE,
        }
    }

    pub(super) fn guess(dice: u64, now: Instant) -> Self {
        let number = |n: u64| u32::try_from(n).unwrap_or(0);
        let stride = usize::try_from(dice >> 32 & 3).unwrap_or(0);
        Self::Guess {
            next: 0,
            at: now,
            start: number(dice % u64::from(PORTS)),
            stride: STRIDES[stride],
        }
    }

    /// When there is something to do.
    pub(super) const fn poll_at(&self) -> Instant {
        match self {
            Self::Spray { at, .. } | Self::Guess { at, .. } => *at,
        }
    }

    /// The spare sockets to send from, or the ports to send to, now; `None` when it is over.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Vec<u32>> {
        match self {
            Self::Spray { next, at, ends } => {
                if now >= *ends {
                    return None;
                }
                if now < *at {
                    return Some(Vec::new());
                }
                let chunk = *next..*next + CHUNK;
                *next = chunk.end;
                *at = match chunk.end {
                    SPARES => now + AGAIN,
                    end if end >= 2 * SPARES => *ends,
                    _ => now + PAUSE,
                };
                Some(chunk.map(|n| n % SPARES).collect())
            }
            Self::Guess {
                next,
                at,
                start,
                stride,
            } => {
                if *next >= GUESSES {
                    return None;
                }
                if now < *at {
                    return Some(Vec::new());
                }
                let chunk = *next..*next + CHUNK;
                *next = chunk.end;
                *at = now + PAUSE;
                let port = |n: u32| {
                    let place = u64::from(*start) + u64::from(n) * u64::from(*stride);
                    PORT_FIRST + u32::try_from(place % u64::from(PORTS)).unwrap_or(0)
                };
                Some(chunk.map(port).collect())
            }
        }
    }

    pub(super) const fn is_guess(&self) -> bool {
        matches!(self, Self::Guess { .. })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn run(mut birthday: Birthday) -> Vec<u32> {
        let mut all = Vec::new();
        for _ in 0..1000 {
            let at = birthday.poll_at();
            let Some(now) = birthday.poll(at) else {
                return all;
            };
            all.extend(now);
        }
        panic!("it does not end");
    }

    #[test]
    fn ports_are_guessed_once_each() {
        for dice in [0, 1, u64::MAX, 0x0000_0003_0000_fbff] {
            let ports = run(Birthday::guess(dice, Instant::from_secs(1)));
            assert_eq!(ports.len(), usize::try_from(GUESSES).unwrap());
            assert!(ports.iter().all(|port| (1024..65_536).contains(port)));
            assert_eq!(ports.iter().collect::<HashSet<_>>().len(), ports.len());
        }
    }

    #[test]
    fn every_socket_is_used_twice() {
        let spares = run(Birthday::spray(Instant::from_secs(1)));
        assert_eq!(spares.len(), 512);
        assert!((0..SPARES).all(|n| spares.iter().filter(|spare| **spare == n).count() == 2));
    }
}
