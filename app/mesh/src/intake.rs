//! Which handshakes of strangers are looked at. To look at one takes an X25519 of some 40 µs and a
//! question to the resolver, and everybody who knows our public key can ask for it.
//!
//! Up to a number a second, everybody's. Beyond it only those of who has shown, by a cookie, that it gets
//! what is sent to its address; of each such address so many, and of all together so many. What does not
//! even know our public key costs a hash and counts for nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use gotatun::noise::TunnResult;
use gotatun::noise::errors::WireGuardError;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::packet::{Packet, WgHandshakeInit, WgHandshakeResp, WgKind};
use gotatun::x25519::PublicKey;
use tokio::time::Instant;

/// LIMIT: initiations with a cookie that are looked at in a second: of one address, and of all. All
/// runners of a host may share one.
const PROVEN_OF_ONE: u32 = 100;
const PROVEN_OF_ALL: u32 = 1000;
/// LIMIT: cookies for one address and port in a second, and addresses that are counted; who needs one
/// asks once a second.
const COOKIES_OF_ONE: u32 = 20;
const COUNTED_MAX: usize = 4096;
const SECOND: Duration = Duration::from_secs(1);

/// What becomes of a handshake message.
pub(crate) enum Verdict {
    /// Its sender is to be looked up.
    Initiation(Packet<WgHandshakeInit>),
    /// For the session that asked for it.
    Response(Packet<WgHandshakeResp>),
    /// To be answered with this: prove where you are.
    Cookie(Packet),
    /// Its sender has had its share.
    TooMany,
    /// Not made with our public key.
    Forged,
    Malformed,
}

/// See the module.
pub(crate) struct Intake {
    /// Knows our public key; asks nobody for a cookie.
    open: Arc<RateLimiter>,
    /// Asks everybody.
    strict: RateLimiter,
    most: u64,
    since: Instant,
    judged: u64,
    seen: u64,
    proven: u32,
    of_each: HashMap<IpAddr, u32>,
    cookies: HashMap<SocketAddr, u32>,
}

impl Intake {
    /// Looks at `most` a second without a cookie; `open` must ask nobody for one.
    pub(crate) fn new(open: Arc<RateLimiter>, public: &PublicKey, most: u64, now: Instant) -> Self {
        Self {
            open,
            strict: RateLimiter::new(public, 0),
            most,
            since: now,
            judged: 0,
            seen: 0,
            proven: 0,
            of_each: HashMap::new(),
            cookies: HashMap::new(),
        }
    }

    /// Judges a message that claims to be of a handshake.
    pub(crate) fn judge(&mut self, from: SocketAddr, message: Packet, now: Instant) -> Verdict {
        if now >= self.since + SECOND {
            (self.since, self.judged, self.seen, self.proven) = (now, 0, 0, 0);
            self.of_each.clear();
            self.cookies.clear();
        }
        self.judged += 1;
        // Each remembers addresses until then.
        self.open.try_reset_count();
        self.strict.try_reset_count();
        let initiation = match self.open.verify_packet(from, message) {
            Ok(WgKind::HandshakeInit(initiation)) => initiation,
            other => return verdict(other),
        };
        self.seen += 1;
        if self.seen <= self.most {
            return Verdict::Initiation(initiation);
        }
        match self.strict.verify_packet(from, initiation.into()) {
            Ok(WgKind::HandshakeInit(_)) if !self.takes(from.ip()) => Verdict::TooMany,
            Err(TunnResult::WriteToNetwork(_)) if !self.gives(from) => Verdict::TooMany,
            other => verdict(other),
        }
    }

    /// Whether there are so many messages that they are better judged some at a time.
    pub(crate) const fn is_flooded(&self) -> bool {
        self.judged > self.most
    }

    /// Whether one more cookie is given to who is there.
    fn gives(&mut self, to: SocketAddr) -> bool {
        if self.cookies.len() >= COUNTED_MAX && !self.cookies.contains_key(&to) {
            return true;
        }
        let given = self.cookies.entry(to).or_insert(0);
        *given = given.saturating_add(1);
        *given <= COOKIES_OF_ONE
    }

    /// Whether one more of who has a cookie is taken.
    fn takes(&mut self, of: IpAddr) -> bool {
        if self.proven >= PROVEN_OF_ALL {
            return false;
        }
        // At most as many as are taken in a second.
        let taken = self.of_each.entry(subscriber(of)).or_insert(0);
        if *taken >= PROVEN_OF_ONE {
            return false;
        }
        *taken += 1;
        self.proven += 1;
        true
    }
}

fn verdict(of: Result<WgKind, TunnResult>) -> Verdict {
    match of {
        Ok(WgKind::HandshakeInit(initiation)) => Verdict::Initiation(initiation),
        Ok(WgKind::HandshakeResp(response)) => Verdict::Response(response),
        Ok(WgKind::CookieReply(_) | WgKind::Data(_))
        | Err(TunnResult::Err(WireGuardError::InvalidPacket)) => Verdict::Malformed,
        Err(TunnResult::WriteToNetwork(cookie)) => Verdict::Cookie(cookie.into()),
        Err(_) => Verdict::Forged,
    }
}

/// Whoever is behind an address: of IPv6 everybody has a network of 64 bits (RFC 6177) to choose from.
/// What stands for a peer behind a relay is of the discard prefix (RFC 6666), and is one each.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !matches!(v6.segments(), [0x100, 0, 0, 0, ..]) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use gotatun::noise::Tunn;
    use gotatun::noise::index_table::IndexTable;

    use super::*;
    use crate::PrivateKey;

    const MOST: u64 = 5;

    fn key(n: u8) -> PrivateKey {
        PrivateKey::from_bytes(&[n; 32])
    }

    fn public(n: u8) -> PublicKey {
        PublicKey::from(key(n).public().0)
    }

    fn intake(now: Instant) -> Intake {
        let open = Arc::new(RateLimiter::new(&public(1), u64::MAX));
        Intake::new(open, &public(1), MOST, now)
    }

    /// Somebody who calls endpoint 1.
    fn caller(n: u8) -> Tunn {
        Tunn::new(
            key(n).secret().clone(),
            public(1),
            None,
            None,
            IndexTable::from_os_rng(),
            Arc::new(RateLimiter::new(&public(n), 1000)),
        )
    }

    fn initiation(of: &mut Tunn) -> Packet {
        let initiation = of.format_handshake_initiation(true);
        initiation.expect("forced").into()
    }

    fn from(n: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n.to_be_bytes()[1]], 1000 + n))
    }

    #[test]
    fn beyond_the_number_a_cookie_is_asked_for_and_is_enough() {
        let now = Instant::now();
        let mut intake = intake(now);
        // Each from another address, as who forges them has it.
        for n in 0..5 {
            let verdict = intake.judge(from(n), initiation(&mut caller(2)), now);
            assert!(matches!(verdict, Verdict::Initiation(_)));
        }
        let mut honest = caller(3);
        let Verdict::Cookie(cookie) = intake.judge(from(9), initiation(&mut honest), now) else {
            panic!("it was looked at");
        };
        let cookie = cookie.try_into_wg().expect("a message");
        honest.handle_incoming_packet(cookie);
        let verdict = intake.judge(from(9), initiation(&mut honest), now);
        assert!(matches!(verdict, Verdict::Initiation(_)));
        // A cookie is for one address.
        let verdict = intake.judge(from(8), initiation(&mut honest), now);
        assert!(matches!(verdict, Verdict::Cookie(_)));
        // A second later nobody needs one.
        let verdict = intake.judge(from(7), initiation(&mut caller(4)), now + SECOND);
        assert!(matches!(verdict, Verdict::Initiation(_)));
    }

    #[test]
    fn who_has_a_cookie_has_a_share_no_more() {
        let now = Instant::now();
        let mut intake = intake(now);
        intake.seen = MOST;
        let mut greedy = caller(2);
        let Verdict::Cookie(cookie) = intake.judge(from(1), initiation(&mut greedy), now) else {
            panic!("it was looked at");
        };
        greedy.handle_incoming_packet(cookie.try_into_wg().expect("a message"));
        let proven = initiation(&mut greedy);
        let looked_at = (0..500).filter(|_| {
            let again = Packet::copy_from(&proven[..]);
            matches!(intake.judge(from(1), again, now), Verdict::Initiation(_))
        });
        assert_eq!(looked_at.count(), 100);
        let others = (0..=u8::MAX).map(|n| IpAddr::from([198, 51, 100, n]));
        let taken: u32 = others
            .map(|other| (0..10).map(|_| u32::from(intake.takes(other))).sum::<u32>())
            .sum();
        assert_eq!(taken, 900);
    }

    #[test]
    fn one_address_gets_a_few_cookies() {
        let now = Instant::now();
        let mut intake = intake(now);
        intake.seen = MOST;
        let again = initiation(&mut caller(2));
        let cookies = (0..500).filter(|_| {
            let again = Packet::copy_from(&again[..]);
            matches!(intake.judge(from(1), again, now), Verdict::Cookie(_))
        });
        assert_eq!(cookies.count(), 20);
        let verdict = intake.judge(from(2), again, now);
        assert!(matches!(verdict, Verdict::Cookie(_)));
        assert!(intake.is_flooded());
    }

    #[test]
    fn what_does_not_know_our_key_uses_nothing_up() {
        let now = Instant::now();
        let mut intake = intake(now);
        for byte in 0..200 {
            let mut forged = initiation(&mut caller(2)).to_vec();
            forged[120] ^= byte | 1;
            let forged = Packet::copy_from(&forged[..]);
            assert!(matches!(
                intake.judge(from(1), forged, now),
                Verdict::Forged
            ));
        }
        let verdict = intake.judge(from(2), initiation(&mut caller(2)), now);
        assert!(matches!(verdict, Verdict::Initiation(_)));
        let short = Packet::copy_from(&[1; 20][..]);
        assert!(matches!(
            intake.judge(from(1), short, now),
            Verdict::Malformed
        ));
    }
}
