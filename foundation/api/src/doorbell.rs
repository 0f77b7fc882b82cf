//! The doorbell of a machine: whoever dials an instance that is idle there is connected with the machine
//! instead, says whom it wants, and is held until the instance is awake. From then on the connection is the
//! app's, byte for byte.
//!
//! ```text
//! caller ─ resolve ─▶ lease with a door: the machine's key, its address
//!        ─ dial ────▶ [machine]:8732 ─ Knock ─▶ Heard ─▶ bytes, both ways
//! ```
//!
//! A [`Knock`] is 26 bytes, the answer is one: [`Heard`]. How long the caller waits for the app's first byte is
//! its own affair.

use serde::{Deserialize, Serialize};
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{AppId, InstanceId, MeshKey};
use uuid::Uuid;

use crate::BoxFuture;
use crate::mesh::ResolveError;
use crate::policy::Ports;

/// Where a machine's doorbell listens on its address.
pub const DOORBELL_PORT: u16 = 8732;
/// `POST` a [`DoorAsk`] to the coordinator for a [`DoorSaid`]: machines alone, about what was placed on them.
pub const DOOR_PATH: &str = "/v1/coordinator/door";
/// LIMIT: connections that wait for idle instances of one machine; and for one of them, a sixteenth.
pub const WAITING_MAX: usize = 1024;
/// Bytes of a [`Knock`].
pub const KNOCK_LEN: usize = 26;

const MAGIC: [u8; 4] = *b"TBK1";

/// Whom a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knock {
    /// The instance.
    pub of: InstanceRef,
    /// The port of it.
    pub port: u16,
}

impl Knock {
    /// As it crosses the wire: `TBK1`, the app's id, and, big-endian, the instance and the port.
    #[must_use]
    pub fn to_bytes(self) -> [u8; KNOCK_LEN] {
        let mut bytes = [0; KNOCK_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..20].copy_from_slice(self.of.app.uuid().as_bytes());
        bytes[20..24].copy_from_slice(&self.of.instance.get().to_be_bytes());
        bytes[24..].copy_from_slice(&self.port.to_be_bytes());
        bytes
    }

    /// The same back; none if it is something else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; KNOCK_LEN]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (app, rest) = rest.split_first_chunk::<16>()?;
        let (instance, port) = rest.split_first_chunk::<4>()?;
        let of = InstanceRef {
            app: AppId::from_uuid(Uuid::from_bytes(*app)),
            instance: InstanceId(u32::from_be_bytes(*instance)),
        };
        let port = u16::from_be_bytes(port.try_into().ok()?);
        (*magic == MAGIC).then_some(Self { of, port })
    }
}

/// What a doorbell answers to a [`Knock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Heard {
    /// The instance is asked for; what is written waits for it.
    Held = 1,
    /// Policy does not let the caller reach the port.
    Forbidden = 2,
    /// The instance is not here, or ends: who answers for the address is to be asked anew.
    NotHere = 3,
    /// As many wait as may.
    Busy = 4,
}

impl Heard {
    /// The answer that a byte means.
    #[must_use]
    pub const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Held),
            2 => Some(Self::Forbidden),
            3 => Some(Self::NotHere),
            4 => Some(Self::Busy),
            _ => None,
        }
    }
}

/// A machine asks about an instance that was placed on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DoorAsk {
    /// The instance.
    pub of: InstanceRef,
    /// Who wants to reach it, by the key that it has proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<MeshKey>,
}

/// The answer to a [`DoorAsk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoorSaid {
    /// Whether callers of the instance are sent to the machine's doorbell now.
    pub is_idle: bool,
    /// Ports of the instance that the guest may reach, as the instance itself would let it; without a guest,
    /// nothing.
    pub ports: Ports,
}

/// Answers a machine's questions about what was placed on it.
pub trait Doorbells: Send + Sync + std::fmt::Debug {
    /// See [`DoorAsk`].
    fn ask(&self, ask: DoorAsk) -> BoxFuture<'_, Result<DoorSaid, ResolveError>>;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn a_knock_is_spelled_so() {
        let knock = Knock {
            of: InstanceRef {
                app: "0191e7c2-1111-7222-8333-444455556666".parse().unwrap(),
                instance: InstanceId(0x0102_0304),
            },
            port: 8730,
        };
        let mut expected = b"TBK1".to_vec();
        expected.extend([0x01, 0x91, 0xe7, 0xc2, 0x11, 0x11, 0x72, 0x22]);
        expected.extend([0x83, 0x33, 0x44, 0x44, 0x55, 0x55, 0x66, 0x66]);
        expected.extend([1, 2, 3, 4, 0x22, 0x1a]);
        assert_eq!(knock.to_bytes().as_slice(), expected);
        assert_eq!(Knock::from_bytes(&knock.to_bytes()), Some(knock));
        let mut other = knock.to_bytes();
        other[3] = b'2';
        assert_eq!(Knock::from_bytes(&other), None);
    }

    #[test]
    fn answers_are_their_bytes() {
        for heard in [Heard::Held, Heard::Forbidden, Heard::NotHere, Heard::Busy] {
            assert_eq!(Heard::of(heard as u8), Some(heard));
        }
        assert_eq!(Heard::of(0), None);
        assert_eq!(Heard::of(b'H'), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn hostile_bytes_are_a_knock_or_none(bytes in any::<[u8; KNOCK_LEN]>()) {
            if let Some(knock) = Knock::from_bytes(&bytes) {
                prop_assert_eq!(knock.to_bytes(), bytes);
            }
            let mut dressed = bytes;
            dressed[..4].copy_from_slice(b"TBK1");
            if let Some(knock) = Knock::from_bytes(&dressed) {
                prop_assert_eq!(knock.to_bytes(), dressed);
            }
        }
    }
}
