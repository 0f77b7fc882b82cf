//! Deterministic addresses of the mesh (DESIGN section 4): the one place that derives them.
//!
//! ```text
//! app       fd5a:1f02: g0 : g1 : g2 :    0    :   0     : 1
//! instance  fd5a:1f02: g0 : g1 : g2 : inst hi : inst lo : 2
//! host      fd5a:1f00: network : index : 0 : 0 : 0 : 1
//! device    fd5a:1f01: numb hi : numb lo : 0 : 0 : 0 : 1
//! ```
//! g0 g1 g2 are bytes 0–5 of the unkeyed BLAKE3 of the UUID's 16 big-endian bytes.
//! Forty-eight bits can collide, so registering an app whose address was ever taken is refused.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{AppId, InstanceId, ParseError};

const PLATFORM: u16 = 0xfd5a;
const APPS: u16 = 0x1f02;
const HOSTS: u16 = 0x1f00;
const DEVICES: u16 = 0x1f01;

macro_rules! ula {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $is:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "Ipv6Addr", into = "Ipv6Addr")]
        pub struct $name(Ipv6Addr);

        impl $name {
            /// The address, for a socket.
            #[must_use]
            pub const fn addr(self) -> Ipv6Addr {
                self.0
            }
        }

        impl TryFrom<Ipv6Addr> for $name {
            type Error = ParseError;
            fn try_from(addr: Ipv6Addr) -> Result<Self, ParseError> {
                let is: fn([u16; 8]) -> bool = $is;
                if is(addr.segments()) {
                    Ok(Self(addr))
                } else {
                    Err(ParseError::new($expected, &addr.to_string()))
                }
            }
        }

        impl From<$name> for Ipv6Addr {
            fn from(ula: $name) -> Self {
                ula.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                let addr: Ipv6Addr = text.parse().map_err(|_| ParseError::new($expected, text))?;
                addr.try_into()
            }
        }
    };
}

ula!(
    /// Address of an app: "its current primary instance".
    AppUla,
    "an app address (fd5a:1f02:…::1)",
    |s| s[0] == PLATFORM && s[1] == APPS && s[5] == 0 && s[6] == 0 && s[7] == 1
);
ula!(
    /// Address of one instance of an app.
    InstanceUla,
    "an instance address (fd5a:1f02:…:2)",
    |s| s[0] == PLATFORM && s[1] == APPS && s[7] == 2
);
ula!(
    /// Address of a host, from numbers that the coordinator hands out and records.
    HostUla,
    "a host address (fd5a:1f00:network:index::1)",
    |s| s[0] == PLATFORM && s[1] == HOSTS && s[4..7] == [0; 3] && s[7] == 1
);
ula!(
    /// Address of a person's device behind a gateway, from a number that the coordinator hands out and
    /// records. In a prefix of its own, which no gateway is asked for: nobody reaches a device.
    DeviceUla,
    "a device address (fd5a:1f01:number:number::1)",
    |s| s[0] == PLATFORM && s[1] == DEVICES && s[4..7] == [0; 3] && s[7] == 1
);

fn groups(app: AppId) -> [u16; 3] {
    let hash = blake3::hash(app.uuid().as_bytes());
    let b = hash.as_bytes();
    [[b[0], b[1]], [b[2], b[3]], [b[4], b[5]]].map(u16::from_be_bytes)
}

impl AppUla {
    /// The app's address; the same everywhere, so nobody looks it up.
    #[must_use]
    pub fn derive(app: AppId) -> Self {
        let [g0, g1, g2] = groups(app);
        Self(Ipv6Addr::new(PLATFORM, APPS, g0, g1, g2, 0, 0, 1))
    }
}

impl InstanceUla {
    /// The address of `instance` of `app`.
    #[must_use]
    pub fn derive(app: AppId, instance: InstanceId) -> Self {
        let [g0, g1, g2] = groups(app);
        let [a, b, c, d] = instance.get().to_be_bytes();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Self(Ipv6Addr::new(PLATFORM, APPS, g0, g1, g2, high, low, 2))
    }
}

impl HostUla {
    /// The address of host `index` in `network`.
    #[must_use]
    pub const fn new(network: u16, index: u16) -> Self {
        Self(Ipv6Addr::new(PLATFORM, HOSTS, network, index, 0, 0, 0, 1))
    }
}

impl DeviceUla {
    /// The address of device `number`.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        let [a, b, c, d] = number.to_be_bytes();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Self(Ipv6Addr::new(PLATFORM, DEVICES, high, low, 0, 0, 0, 1))
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        let [_, _, high, low, ..] = self.0.segments();
        (high as u32) << 16 | low as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Vectors {
        vectors: Vec<Vector>,
    }

    #[derive(Deserialize)]
    struct Vector {
        uuid: AppId,
        digest_prefix: String,
        app_ula: AppUla,
    }

    #[test]
    fn published_vectors() {
        let file: Vectors = serde_json::from_str(include_str!("../vectors/ula.json")).unwrap();
        assert_eq!(file.vectors.len(), 4);
        for v in file.vectors {
            assert_eq!(AppUla::derive(v.uuid), v.app_ula);
            let hex = blake3::hash(v.uuid.uuid().as_bytes()).to_hex();
            assert_eq!(hex[..16], v.digest_prefix);
            assert_eq!(v.app_ula.to_string().parse::<AppUla>().unwrap(), v.app_ula);
        }
    }

    #[test]
    fn golden_text() {
        let app: AppId = "0191e7c2-1111-7222-8333-444455556666".parse().unwrap();
        assert_eq!(
            AppUla::derive(app).to_string(),
            "fd5a:1f02:44a5:240b:121a::1"
        );
        let third = InstanceUla::derive(app, InstanceId(0x0001_0003));
        assert_eq!(third.to_string(), "fd5a:1f02:44a5:240b:121a:1:3:2");
        assert_eq!(HostUla::new(1, 2).to_string(), "fd5a:1f00:1:2::1");
        let device = DeviceUla::new(0x0001_0003);
        assert_eq!(device.to_string(), "fd5a:1f01:1:3::1");
        assert_eq!(device.number(), 0x0001_0003);
    }

    #[test]
    fn kinds_do_not_mix() {
        let app: AppId = "0191e7c2-1111-7222-8333-444455556666".parse().unwrap();
        let (a, i) = (AppUla::derive(app), InstanceUla::derive(app, InstanceId(1)));
        assert!(InstanceUla::try_from(a.addr()).is_err());
        assert!(AppUla::try_from(i.addr()).is_err());
        assert!(HostUla::try_from(a.addr()).is_err());
        assert!(HostUla::try_from(DeviceUla::new(7).addr()).is_err());
        assert!(DeviceUla::try_from(HostUla::new(0, 7).addr()).is_err());
        assert!("::1".parse::<AppUla>().is_err());
    }
}
