//! Asking the NAT for a port: PCP (RFC 6887), or NAT-PMP (RFC 6886) where the NAT knows no better; the
//! client's half of both, for one UDP port. Where it knows neither, somebody is to ask over UPnP. Sans-IO:
//! datagrams and the time come in, requests come out. Takes hostile bytes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use smoltcp::time::{Duration, Instant};

/// Where a NAT is asked.
const PORT: u16 = 5351;
/// What is asked for, in seconds, renewed when half of what was given is over.
pub(crate) const LIFETIME: u32 = 7200;
/// LIMIT: what a NAT may give, so that renewals are never too many nor too late.
const LIFETIME_MIN: Duration = Duration::from_secs(120);
const LIFETIME_MAX: Duration = Duration::from_secs(86_400);
/// A request without answer is repeated after this long, doubled each time, LIMIT: so often.
const RETRY: Duration = Duration::from_millis(250);
const ATTEMPTS_MAX: u32 = 5;
/// A NAT that says no, or nothing, is asked again after this long.
const PAUSE: Duration = Duration::from_secs(600);

const UDP: u8 = 17;
const PCP: u8 = 2;
const PCP_MAP: u8 = 1;
const PCP_LEN: usize = 60;
const PMP: u8 = 0;
const PMP_ADDRESS: u8 = 0;
const PMP_MAP_UDP: u8 = 1;
const RESPONSE: u8 = 0x80;

type Nonce = [u8; 12];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Pcp,
    Pmp,
}

/// A port of one NAT, asked for or had.
#[derive(Debug)]
pub(crate) struct PortMap {
    gateway: Ipv4Addr,
    /// What is to be reached.
    internal: SocketAddrV4,
    nonce: Nonce,
    speech: Speech,
    attempts: u32,
    next: Instant,
    /// Of NAT-PMP, which tells address and port apart.
    address: Option<Ipv4Addr>,
    port: Option<u16>,
    had: Option<(SocketAddr, Instant)>,
    /// Whether what was had last was had over UPnP, which is asked first then.
    by_upnp: bool,
    upnp: Upnp,
}

/// Whether the NAT is asked over UPnP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upnp {
    No,
    /// Somebody is to.
    Due,
    /// Somebody does.
    Asked,
}

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// This address and port lead to ours for so many seconds.
    Mapped(SocketAddr, u32),
    Address(Ipv4Addr),
    Port(u16, u32),
    /// It speaks NAT-PMP only.
    Older,
    Refused,
}

impl PortMap {
    /// For a socket at `internal`, of the NAT at `gateway`.
    pub(crate) fn new(gateway: Ipv4Addr, internal: SocketAddrV4, now: Instant) -> Self {
        Self {
            gateway,
            internal,
            nonce: tabbify_process::random(),
            speech: Speech::Pcp,
            attempts: 0,
            next: now,
            address: None,
            port: None,
            had: None,
            by_upnp: false,
            upnp: Upnp::No,
        }
    }

    /// The NAT's address and ours, by which it is known whether another one is needed.
    pub(crate) const fn ends(&self) -> (Ipv4Addr, SocketAddrV4) {
        (self.gateway, self.internal)
    }

    /// What leads to us.
    pub(crate) fn mapped(&self, now: Instant) -> Option<SocketAddr> {
        let (external, until) = self.had?;
        (now < until).then_some(external)
    }

    /// When to poll.
    pub(crate) const fn poll_at(&self) -> Instant {
        self.next
    }

    /// The requests that are due, and where to.
    pub(crate) fn poll(&mut self, now: Instant) -> Vec<(SocketAddr, Vec<u8>)> {
        if now < self.next {
            return Vec::new();
        }
        if self.attempts >= ATTEMPTS_MAX || self.by_upnp {
            self.turn_to_upnp(now);
            return Vec::new();
        }
        if self.attempts == 0 {
            (self.address, self.port) = (None, None);
        }
        self.next = now + RETRY * (1 << self.attempts);
        self.attempts += 1;
        let requests = match self.speech {
            Speech::Pcp => vec![self.pcp()],
            Speech::Pmp => vec![vec![PMP, PMP_ADDRESS], self.pmp()],
        };
        let to = SocketAddr::from((self.gateway, PORT));
        requests.into_iter().map(|request| (to, request)).collect()
    }

    /// Takes a datagram; whether it was an answer of the NAT.
    pub(crate) fn receive(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) -> bool {
        if from != SocketAddr::from((self.gateway, PORT)) {
            return false;
        }
        // What was not asked is not listened to.
        let answer = (self.attempts > 0).then(|| self.read(bytes)).flatten();
        match answer {
            None => return false,
            Some(Answer::Older) => {
                self.speech = Speech::Pmp;
                self.attempts = 0;
                self.next = now;
            }
            Some(Answer::Refused) => self.turn_to_upnp(now),
            Some(Answer::Mapped(external, seconds)) => self.have(external, seconds, now),
            Some(Answer::Address(address)) => {
                self.address = Some(address);
                self.join(LIFETIME, now);
            }
            Some(Answer::Port(port, seconds)) => {
                self.port = Some(port);
                self.join(seconds, now);
            }
        }
        true
    }

    /// Whether the NAT is to be asked over UPnP now; whoever hears it asks for [`LIFETIME`] seconds, and says
    /// what came of it.
    pub(crate) fn takes_upnp(&mut self) -> bool {
        let is_due = self.upnp == Upnp::Due;
        if is_due {
            self.upnp = Upnp::Asked;
        }
        is_due
    }

    /// What the NAT gives over UPnP, if it does.
    pub(crate) fn answered(&mut self, external: Option<SocketAddr>, now: Instant) {
        if std::mem::replace(&mut self.upnp, Upnp::No) != Upnp::Asked {
            return;
        }
        let before = std::mem::replace(&mut self.by_upnp, false);
        match external.filter(|external| is_useful(*external)) {
            Some(external) => {
                self.by_upnp = true;
                self.have(external, LIFETIME, now);
            }
            // It may be another router by now: it is asked in every way.
            None if before => self.rest(now),
            None => self.rest(now + PAUSE),
        }
    }

    fn turn_to_upnp(&mut self, now: Instant) {
        self.upnp = Upnp::Due;
        self.rest(now + PAUSE);
    }

    fn join(&mut self, seconds: u32, now: Instant) {
        if let (Some(address), Some(port)) = (self.address, self.port) {
            self.have((address, port).into(), seconds, now);
        }
    }

    fn have(&mut self, external: SocketAddr, seconds: u32, now: Instant) {
        let given = Duration::from_secs(seconds.into());
        let given = given.max(LIFETIME_MIN).min(LIFETIME_MAX);
        self.had = Some((external, now + given));
        self.rest(now + given / 2);
    }

    fn rest(&mut self, until: Instant) {
        self.attempts = 0;
        self.next = until;
    }

    /// RFC 6887, sections 7.1 and 11.1.
    fn pcp(&self) -> Vec<u8> {
        let mut request = vec![PCP, PCP_MAP, 0, 0];
        request.extend(LIFETIME.to_be_bytes());
        request.extend(self.internal.ip().to_ipv6_mapped().octets());
        request.extend(self.nonce);
        request.extend([UDP, 0, 0, 0]);
        request.extend(self.internal.port().to_be_bytes());
        // The same port outside would be best, from any address.
        request.extend(self.internal.port().to_be_bytes());
        request.extend(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
        request
    }

    /// RFC 6886, section 3.3.
    fn pmp(&self) -> Vec<u8> {
        let mut request = vec![PMP, PMP_MAP_UDP, 0, 0];
        request.extend(self.internal.port().to_be_bytes());
        request.extend(self.internal.port().to_be_bytes());
        request.extend(LIFETIME.to_be_bytes());
        request
    }

    fn read(&self, bytes: &[u8]) -> Option<Answer> {
        let [version, kind, _, result, ..] = *bytes else {
            return None;
        };
        if kind & RESPONSE == 0 {
            return None;
        }
        match (version, self.speech) {
            (PCP, Speech::Pcp) => self.read_pcp(result, bytes),
            // RFC 6887, appendix A: a NAT of NAT-PMP answers in its own version.
            (PMP, Speech::Pcp) => Some(Answer::Older),
            (PMP, Speech::Pmp) => self.read_pmp(kind & !RESPONSE, bytes),
            _ => None,
        }
    }

    fn read_pcp(&self, result: u8, bytes: &[u8]) -> Option<Answer> {
        if bytes[1] != RESPONSE | PCP_MAP || bytes.len() < PCP_LEN {
            return None;
        }
        let is_ours = bytes[24..36] == self.nonce
            && bytes[36] == UDP
            && u16_at(bytes, 40)? == self.internal.port();
        if !is_ours {
            return None;
        }
        if result != 0 {
            return Some(Answer::Refused);
        }
        let ip: [u8; 16] = bytes.get(44..60)?.try_into().ok()?;
        let external = SocketAddr::new(IpAddr::from(ip).to_canonical(), u16_at(bytes, 42)?);
        is_useful(external).then_some(Answer::Mapped(external, u32_at(bytes, 4)?))
    }

    fn read_pmp(&self, operation: u8, bytes: &[u8]) -> Option<Answer> {
        if u16_at(bytes, 2)? != 0 {
            return Some(Answer::Refused);
        }
        match operation {
            PMP_ADDRESS => {
                let ip: [u8; 4] = bytes.get(8..12)?.try_into().ok()?;
                let address = Ipv4Addr::from(ip);
                is_useful((address, 1).into()).then_some(Answer::Address(address))
            }
            PMP_MAP_UDP if u16_at(bytes, 8)? == self.internal.port() => {
                let port = u16_at(bytes, 10).filter(|port| *port != 0)?;
                Some(Answer::Port(port, u32_at(bytes, 12)?))
            }
            _ => None,
        }
    }
}

fn is_useful(address: SocketAddr) -> bool {
    let ip = address.ip();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The default gateway in the text of `/proc/net/route`.
pub(crate) fn gateway(routes: &str) -> Option<Ipv4Addr> {
    routes.lines().skip(1).find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (to, via) = (words.next()?, words.next()?);
        let mask = words.nth(4)?;
        // The kernel writes its memory as a number.
        let via = u32::from_str_radix(via, 16).ok()?;
        let is_default = to == "00000000" && mask == "00000000" && via != 0;
        is_default.then(|| Ipv4Addr::from(via.to_ne_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
    const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

    fn from() -> SocketAddr {
        SocketAddr::from((NAT, PORT))
    }

    fn now() -> Instant {
        Instant::from_secs(100)
    }

    fn map() -> PortMap {
        PortMap::new(
            NAT,
            SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 2), 51820),
            now(),
        )
    }

    /// A NAT that gives what it is asked for (PCP).
    fn grant(request: &[u8]) -> Vec<u8> {
        let mut answer = vec![PCP, RESPONSE | PCP_MAP, 0, 0];
        answer.extend(3600_u32.to_be_bytes());
        answer.extend([0; 16]);
        answer.extend(&request[24..42]);
        answer.extend(40_000_u16.to_be_bytes());
        answer.extend(EXTERNAL.to_ipv6_mapped().octets());
        answer
    }

    #[test]
    fn pcp_gives_a_port_and_is_asked_again_in_time() {
        let mut map = map();
        let requests = map.poll(now());
        assert_eq!(requests.len(), 1);
        let (to, request) = &requests[0];
        assert_eq!((*to, request.len()), (from(), PCP_LEN));
        let answer = grant(request);
        let elsewhere = SocketAddr::from((EXTERNAL, PORT));
        assert!(!map.receive(elsewhere, &answer, now()), "somebody else");
        assert!(map.receive(from(), &answer, now()));
        assert_eq!(map.mapped(now()), Some((EXTERNAL, 40_000).into()));
        assert_eq!(map.poll_at(), now() + Duration::from_secs(1800));
        assert!(!map.receive(from(), &answer, now()), "nobody asked");
        assert_eq!(map.mapped(now() + Duration::from_secs(3601)), None);
        // Another one's answer, and a refusal.
        let at = map.poll_at();
        let (_, request) = map.poll(at).remove(0);
        let mut other = grant(&request);
        other[24] ^= 1;
        assert!(!map.receive(from(), &other, at));
        let mut refusal = grant(&request);
        refusal[3] = 2;
        assert!(map.receive(from(), &refusal, at));
        assert_eq!(map.poll_at(), at + PAUSE);
        assert!(map.mapped(at).is_some(), "what was given is not taken back");
    }

    #[test]
    fn an_older_nat_is_asked_in_its_own_words() {
        let mut map = map();
        map.poll(now());
        assert!(map.receive(from(), &[0, 0x81, 0, 1, 0, 0, 0, 0], now()));
        let requests = map.poll(now());
        assert_eq!(requests[0].1, [0, 0]);
        assert_eq!(requests[1].1[..8], [0, 1, 0, 0, 0xca, 0x6c, 0xca, 0x6c]);
        let mut port = vec![0, 0x81, 0, 0, 0, 0, 0, 9, 0xca, 0x6c, 0x9c, 0x40];
        port.extend(7200_u32.to_be_bytes());
        assert!(map.receive(from(), &port, now()));
        assert_eq!(map.mapped(now()), None, "half of it");
        let mut address = vec![0, 0x80, 0, 0, 0, 0, 0, 9];
        address.extend(EXTERNAL.octets());
        assert!(map.receive(from(), &address, now()));
        assert_eq!(map.mapped(now()), Some((EXTERNAL, 40_000).into()));
    }

    #[test]
    fn a_deaf_nat_is_left_alone() {
        let (mut map, mut sent, mut at) = (map(), 0, now());
        while at < now() + Duration::from_secs(1200) {
            sent += map.poll(at).len();
            at = map.poll_at();
        }
        assert_eq!(sent, 10, "twice in twenty minutes");
    }

    #[test]
    fn who_is_deaf_or_refuses_is_asked_over_upnp() {
        let mut map = map();
        let mut at = now();
        for _ in 0..=ATTEMPTS_MAX {
            assert!(!map.takes_upnp());
            map.poll(at);
            at = map.poll_at().min(at + Duration::from_secs(60));
        }
        assert!(map.takes_upnp() && !map.takes_upnp(), "once");
        let external = SocketAddr::from((EXTERNAL, 51820));
        map.answered(Some(external), at);
        assert_eq!(map.mapped(at), Some(external));
        map.answered(None, at);
        assert_eq!(map.mapped(at), Some(external), "nobody asked");
        // It is renewed in the same way; a router that has forgotten how is asked in every other, once.
        let at = map.poll_at();
        assert_eq!(map.poll(at), [], "not over PCP");
        assert!(map.takes_upnp());
        map.answered(None, at);
        let requests = map.poll(at);
        assert_eq!(requests.len(), 1);
        let mut refusal = grant(&requests[0].1);
        refusal[3] = 2;
        assert!(map.receive(from(), &refusal, at));
        assert!(map.takes_upnp());
        map.answered(Some(SocketAddr::from(([127, 0, 0, 1], 9))), at);
        assert_eq!(map.poll_at(), at + PAUSE, "that leads nowhere");
        assert_eq!(
            map.mapped(at),
            Some(external),
            "what was given is not taken back"
        );
    }

    #[test]
    fn finds_the_gateway() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
            eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n\
            eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\n";
        assert_eq!(gateway(routes), Some(NAT));
        assert_eq!(gateway(""), None);
        assert_eq!(gateway("Iface\neth0\t00000000\n"), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80), kind in 0usize..4, older in any::<bool>()) {
            let mut map = map();
            map.poll(now());
            if older {
                map.receive(from(), &[0, 0x81, 0, 1], now());
                map.poll(now());
            }
            let mut bytes = bytes;
            if let [version, operation, ..] = &mut bytes[..] {
                (*version, *operation) = [(2, 0x81), (0, 0x80), (0, 0x81), (7, 7)][kind];
            }
            map.receive(from(), &bytes, now());
            prop_assert!(map.mapped(now()).is_none() || map.speech == Speech::Pmp);
        }

        #[test]
        fn a_changed_grant_maps_nothing_else(at in 0usize..PCP_LEN, to in any::<u8>(), text in ".{0,80}") {
            let mut map = map();
            let (_, request) = map.poll(now()).remove(0);
            let mut answer = grant(&request);
            answer[at] = to;
            map.receive(from(), &answer, now());
            if let Some(mapped) = map.mapped(now()) {
                prop_assert!(is_useful(mapped));
            }
            let _ = gateway(&text);
        }
    }
}
