//! Events of the catalog inside a state, as they stand in the log: `#[serde(with = "fold::event")]`, for
//! an `Event` or a boxed one.

use std::borrow::Borrow;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use tabbify_types::Event;

/// Writes type, version and data.
///
/// # Errors
/// Those of the serializer, and an event whose data is too long for the log.
pub fn serialize<E: Borrow<Event>, S: Serializer>(
    event: &E,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let event = event.borrow();
    let data = event.data().map_err(S::Error::custom)?;
    (event.kind(), event.version(), data).serialize(serializer)
}

/// Reads the event back.
///
/// # Errors
/// Those of the deserializer, and an event that this program does not know.
pub fn deserialize<'de, E: From<Event>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<E, D::Error> {
    let (kind, version, data) = <(String, u16, Box<RawValue>)>::deserialize(deserializer)?;
    let event = Event::decode(&kind, version, data.get()).map_err(D::Error::custom)?;
    let unknown = || D::Error::custom(format!("{kind} is not of the catalog"));
    event.map(E::from).ok_or_else(unknown)
}
