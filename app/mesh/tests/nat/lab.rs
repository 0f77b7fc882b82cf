//! The laboratory: a router in the middle, a server with two addresses, and on each side a host behind
//! what the test wants.
//!
//! ```text
//! host ─ [home NAT ─] NAT ─┐
//!                          router ─ server 198.51.100.2, .3: relay, STUN
//! host ─ [home NAT ─] NAT ─┘
//! ```

use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::hostile::Hostile;
use crate::place::{Daemon, Place, Unavailable};
use crate::wire::Weather;
use crate::{Extra, Fallible};

/// One way; both sides have such a cable, so that a round trip between them is four times this.
const FAR: Duration = Duration::from_millis(25);
/// Where the NAT that gives ports is seen: it gives none of networks that are for examples.
const GIVEN: &str = "11.22.33.2";

/// What a host is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing.
    Open,
    /// One port for all; everybody may answer.
    FullCone,
    /// One port for all; only addresses that were sent to may answer.
    Restricted,
    /// One port for all; only addresses with their ports may answer.
    PortRestricted,
    /// A port for each; only that one may answer.
    Symmetric,
    /// A NAT at home behind one of the carrier's.
    Carrier,
    /// Nothing passes but TCP to port 443.
    Blocked,
    /// IPv6, and nothing else.
    Six,
}

/// See the module.
pub(crate) struct Lab {
    pub(crate) server: Place,
    pub(crate) hosts: [Place; 2],
    router: Place,
    is_v6: bool,
    hostile: Option<Hostile>,
    _giver: Option<Giver>,
    _gateways: Vec<Place>,
}

/// A real UPnP, PCP and NAT-PMP daemon, and its files.
struct Giver {
    _daemon: Daemon,
    _files: TempDir,
}

impl Lab {
    pub(crate) fn new(a: Kind, b: Kind, extra: Extra) -> Fallible<Self> {
        let (router, server) = (Place::new("router")?, Place::new("server")?);
        router.forward()?;
        router.cable(
            "server 198.51.100.1/29 2001:db8:5::1/64",
            &server,
            "wan 198.51.100.2/29 198.51.100.3/29 2001:db8:5::2/64",
        )?;
        server.ip("route add default via 198.51.100.1")?;
        server.ip("-6 route add default via 2001:db8:5::1")?;
        if a == Kind::Six {
            router.await_link("server")?;
            server.await_link("wan")?;
        }
        let hosts = [Place::new("host1")?, Place::new("host2")?];
        let mut gateways = Vec::new();
        if extra == Extra::Beside {
            let nat = gateway(&router, 1, a, extra)?;
            for (n, host) in (1..).zip(&hosts) {
                attach(&nat, host, n)?;
            }
            gateways.push(nat);
        } else {
            for ((n, host), kind) in (1..).zip(&hosts).zip([a, b]) {
                gateways.extend(settle(&router, host, n, kind, extra)?);
            }
        }
        let giver = match (extra, gateways.first()) {
            (Extra::Mapped | Extra::Upnp, Some(nat)) => Some(give(&router, nat, extra)?),
            _ => None,
        };
        let hostile = match (extra, gateways.first()) {
            (Extra::Hostile, Some(nat)) => Some(Hostile::start(nat)?),
            _ => None,
        };
        Ok(Self {
            server,
            hosts,
            router,
            is_v6: a == Kind::Six,
            hostile,
            _giver: giver,
            _gateways: gateways,
        })
    }

    /// The router that means no good, if there is one.
    pub(crate) const fn hostile(&self) -> Option<&Hostile> {
        self.hostile.as_ref()
    }

    /// Whether there is only IPv6.
    pub(crate) const fn is_v6(&self) -> bool {
        self.is_v6
    }

    /// Lets nothing pass between the two sides, or everything again.
    pub(crate) fn cut(&self, cut: bool) -> Fallible {
        self.router.nft(if cut {
            "table ip cut { chain forward {
                type filter hook forward priority 0; policy accept;
                iifname \"side1\" oifname \"side2\" drop
                iifname \"side2\" oifname \"side1\" drop
            }
            }\n"
        } else {
            "delete table ip cut\n"
        })
    }
}

/// Connects a host on side `n`; what is between it and the router.
fn settle(router: &Place, host: &Place, n: u8, kind: Kind, extra: Extra) -> Fallible<Vec<Place>> {
    let near = format!("side{n} 203.0.113.{}/28", 16 * n + 1);
    match kind {
        Kind::Open => {
            let far = format!("wan 203.0.113.{}/28", 16 * n + 2);
            if extra.is_far() {
                let weather = Weather {
                    delay: FAR,
                    loss: 0,
                    reorder: 0,
                    bytes_per_second: 12_500_000,
                };
                router.bad_cable(&near, host, &far, weather)?;
            } else {
                router.cable(&near, host, &far)?;
            }
            host.ip(&format!("route add default via 203.0.113.{}", 16 * n + 1))?;
            Ok(Vec::new())
        }
        Kind::Six => {
            let near = format!("side{n} 2001:db8:{n}::1/64");
            router.cable(&near, host, &format!("wan 2001:db8:{n}::2/64"))?;
            router.await_link(&format!("side{n}"))?;
            host.await_link("wan")?;
            host.ip(&format!("-6 route add default via 2001:db8:{n}::1"))?;
            Ok(Vec::new())
        }
        Kind::Carrier => {
            let carrier = gateway(router, n, Kind::PortRestricted, extra)?;
            let home = Place::new("home")?;
            home.forward()?;
            carrier.cable("lan1 100.64.0.1/24", &home, "wan 100.64.0.2/24")?;
            home.ip("route add default via 100.64.0.1")?;
            home.nft(&rules(Kind::PortRestricted))?;
            attach(&home, host, 1)?;
            Ok(vec![carrier, home])
        }
        _ => {
            let nat = gateway(router, n, kind, extra)?;
            attach(&nat, host, 1)?;
            Ok(vec![nat])
        }
    }
}

/// A NAT on side `n` of the router.
fn gateway(router: &Place, n: u8, kind: Kind, extra: Extra) -> Fallible<Place> {
    let nat = Place::new("nat")?;
    nat.forward()?;
    let near = format!("side{n} 203.0.113.{}/28", 16 * n + 1);
    let far = format!("wan 203.0.113.{}/28", 16 * n + 2);
    if extra == Extra::Impaired {
        let weather = Weather {
            delay: Duration::from_millis(15),
            loss: 10,
            reorder: 10,
            bytes_per_second: 2_500_000,
        };
        router.bad_cable(&near, &nat, &far, weather)?;
    } else {
        router.cable(&near, &nat, &far)?;
    }
    nat.ip(&format!("route add default via 203.0.113.{}", 16 * n + 1))?;
    nat.nft(&rules(kind))?;
    Ok(nat)
}

/// Makes the first side's NAT give ports to who asks, in one way.
fn give(router: &Place, nat: &Place, extra: Extra) -> Fallible<Giver> {
    router.ip("addr add 11.22.33.1/29 dev side1")?;
    nat.ip(&format!("addr add {GIVEN}/29 dev wan"))?;
    nat.nft(
        "table inet filter {
            chain forward { type filter hook forward priority 0; policy accept; jump given; }
            chain given { }
            chain prerouting { type nat hook prerouting priority -100; policy accept;
                jump pre_given; }
            chain postrouting { type nat hook postrouting priority 100; policy accept;
                jump post_given; }
            chain pre_given { }
            chain post_given { }
        }\n",
    )?;
    let files = tempfile::tempdir()?;
    let configuration = files.path().join("miniupnpd.conf");
    let (pmp, upnp) = match extra {
        Extra::Upnp => ("no", "yes"),
        _ => ("yes", "no"),
    };
    let text = format!(
        "ext_ifname=wan\nlistening_ip=lan1\next_ip={GIVEN}\nenable_natpmp={pmp}\nenable_upnp={upnp}\n\
         min_lifetime=120\nmax_lifetime=86400\nuuid=00000000-0000-0000-0000-000000000001\n\
         upnp_forward_chain=given\nupnp_nat_chain=pre_given\nupnp_nat_postrouting_chain=post_given\n\
         allow 1024-65535 192.168.1.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n"
    );
    std::fs::write(&configuration, text)?;
    let program = ["/usr/sbin/miniupnpd", "/usr/local/sbin/miniupnpd"]
        .into_iter()
        .find(|program| std::fs::exists(program).is_ok_and(|exists| exists))
        .ok_or_else(|| Unavailable("miniupnpd is missing".to_owned()))?;
    let mut command = Command::new(program);
    command.arg("-d").arg("-f").arg(&configuration);
    command.arg("-P").arg(files.path().join("pid"));
    Ok(Giver {
        _daemon: nat.spawn(command)?,
        _files: files,
    })
}

/// Puts a host behind a NAT, on its `n`th port. Every home has the same addresses.
fn attach(nat: &Place, host: &Place, n: u8) -> Fallible {
    nat.cable(
        &format!("lan{n} 192.168.{n}.1/24"),
        host,
        &format!("wan 192.168.{n}.2/24"),
    )?;
    host.ip(&format!("route add default via 192.168.{n}.1"))
}

/// What makes a router a NAT of this kind.
fn rules(kind: Kind) -> String {
    let translate = match kind {
        Kind::Symmetric => "masquerade random,fully-random",
        _ => "masquerade",
    };
    let inward = match kind {
        Kind::FullCone => "iifname \"wan\" udp dport >= 1024 dnat to 192.168.1.2;",
        Kind::Restricted => {
            "iifname \"wan\" ip saddr @talked udp dport >= 1024 dnat to 192.168.1.2;"
        }
        _ => "",
    };
    let pass = match kind {
        Kind::Blocked => {
            "oifname \"wan\" tcp dport != 443 drop; oifname \"wan\" ip protocol udp drop;"
        }
        Kind::Restricted => "oifname \"wan\" ip protocol udp update @talked { ip daddr };",
        _ => "",
    };
    format!(
        "table ip nat {{
            set talked {{ type ipv4_addr; flags dynamic,timeout; timeout 60s; }}
            chain pre {{ type nat hook prerouting priority -100; policy accept; {inward} }}
            chain post {{ type nat hook postrouting priority 100; policy accept;
                oifname \"wan\" {translate}; }}
            chain forward {{ type filter hook forward priority 0; policy accept; {pass}
                iifname \"wan\" ct state new ct status dnat accept;
                iifname \"wan\" ct state new drop; }}
            chain input {{ type filter hook input priority 0; policy accept;
                iifname \"wan\" ct state new drop; }}
        }}\n"
    )
}
