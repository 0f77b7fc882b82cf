//! What a stock WireGuard client is told, in the format that `wg-quick` and the clients for phones and
//! desktops import.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};

use tabbify_api::device::Connection;
use zeroize::Zeroizing;

/// What lies behind a gateway: machines and apps (DESIGN section 8). Each is of [`PREFIX_BITS`] bits.
pub const PREFIXES: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd5a, 0x1f00, 0, 0, 0, 0, 0, 0),
    Ipv6Addr::new(0xfd5a, 0x1f02, 0, 0, 0, 0, 0, 0),
];
/// Bits of each of [`PREFIXES`].
pub const PREFIX_BITS: u8 = 32;
/// Largest packet within the tunnel: 1500 less the headers of IPv6, UDP and WireGuard.
const MTU: u16 = 1420;
/// How often a client that is silent keeps the way to it open through NATs, in seconds.
const KEEPALIVE_S: u16 = 25;
/// LIMIT: bytes of an endpoint: a domain and a port.
const ENDPOINT_LEN_MAX: usize = 253 + 6;

/// A configuration of a stock client. Its `Display` is the file; it has no DNS, which the gateway does
/// not answer.
pub struct StockConfig {
    /// What the gateway says.
    pub connection: Connection,
    /// The device's private key, if it was made here: the file must be kept as the key is.
    pub private_key: Option<Zeroizing<String>>,
}

impl fmt::Display for StockConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connection {
            device,
            gateway,
            endpoint,
        } = &self.connection;
        writeln!(
            f,
            "# Tabbify: {} of {}, in tenant {}",
            device.name, device.user, device.tenant
        )?;
        writeln!(f, "[Interface]")?;
        match &self.private_key {
            Some(key) => writeln!(f, "PrivateKey = {}", key.as_str())?,
            None => writeln!(
                f,
                "# PrivateKey = the one whose public key is {}",
                device.key
            )?,
        }
        writeln!(f, "Address = {}/128", device.address)?;
        writeln!(f, "MTU = {MTU}")?;
        writeln!(f, "\n[Peer]\nPublicKey = {gateway}")?;
        let allowed = PREFIXES.map(|prefix| format!("{prefix}/{PREFIX_BITS}"));
        writeln!(f, "AllowedIPs = {}", allowed.join(", "))?;
        writeln!(f, "Endpoint = {endpoint}")?;
        writeln!(f, "PersistentKeepalive = {KEEPALIVE_S}")
    }
}

impl fmt::Debug for StockConfig {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StockConfig")
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

/// Whether a client can be told this: an address with a port, or a name with one.
#[must_use]
pub fn is_endpoint(text: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    if let Ok(address) = text.parse::<SocketAddr>() {
        return !address.ip().is_unspecified() && address.port() != 0;
    }
    let label = |label: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && edge(bytes.first())
            && edge(bytes.last())
    };
    text.len() <= ENDPOINT_LEN_MAX
        && text
            .rsplit_once(':')
            .is_some_and(|(host, port)| is_port(port) && host.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tabbify_api::device::Device;
    use tabbify_types::{DeviceUla, MeshKey, Tenant};

    use super::*;

    fn config(private_key: Option<&str>) -> StockConfig {
        StockConfig {
            connection: Connection {
                device: Device {
                    user: "user:anna".to_owned(),
                    tenant: Tenant::main(),
                    name: "laptop".parse().unwrap(),
                    key: MeshKey([7; 32]),
                    address: DeviceUla::new(3),
                },
                gateway: MeshKey([9; 32]),
                endpoint: "gate.example.org:51820".to_owned(),
            },
            private_key: private_key.map(|key| Zeroizing::new(key.to_owned())),
        }
    }

    #[test]
    fn the_file_is_what_stock_clients_import() {
        let expected = "\
            # Tabbify: laptop of user:anna, in tenant main\n\
            [Interface]\n\
            PrivateKey = sekrit\n\
            Address = fd5a:1f01:0:3::1/128\n\
            MTU = 1420\n\
            \n\
            [Peer]\n\
            PublicKey = CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n\
            AllowedIPs = fd5a:1f00::/32, fd5a:1f02::/32\n\
            Endpoint = gate.example.org:51820\n\
            PersistentKeepalive = 25\n";
        let made_here = config(Some("sekrit"));
        assert_eq!(made_here.to_string(), expected);
        assert!(!format!("{made_here:?}").contains("sekrit"));
        let own = config(None).to_string();
        assert!(!own.contains("\nPrivateKey"), "{own}");
        assert!(own.contains("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="));
    }

    #[test]
    fn endpoints() {
        for good in [
            "192.0.2.1:51820",
            "[2001:db8::1]:51820",
            "gate:1",
            "gate.example.org:65535",
        ] {
            assert!(is_endpoint(good), "{good}");
        }
        for bad in [
            "",
            "gate",
            "gate:",
            "gate:0",
            ":1",
            "0.0.0.0:51820",
            "[::]:1",
            "192.0.2.1:0",
            "gate .org:1",
            "gate..org:1",
            "-gate:1",
            "gate:1\nPostUp = x",
            "2001:db8::1:51820",
        ] {
            assert!(!is_endpoint(bad), "{bad}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// An endpoint cannot smuggle another line into the file.
        #[test]
        fn what_is_an_endpoint_is_one_word(text in any::<String>()) {
            if is_endpoint(&text) {
                prop_assert!(text.bytes().all(|b| b.is_ascii_graphic()));
            }
        }
    }
}
