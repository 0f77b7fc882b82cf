//! Snapshots that were damaged, made up, or are of something else.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tabbify_api::log::Filter;
use tabbify_types::event::v1::PeerLeft;
use tabbify_types::{Event, EventId, Recorded};

use super::*;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sums {
    #[serde(with = "crate::fold::pairs")]
    of: BTreeMap<(String, u64), u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<EventId>,
    only: Option<String>,
    #[serde(with = "maybe_event")]
    open: Option<Box<Event>>,
}

/// An event that may be there, through the module for one that is.
mod maybe_event {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct One(#[serde(with = "crate::fold::event")] Box<Event>);

    pub(super) fn serialize<S: serde::Serializer>(
        event: &Option<Box<Event>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        event.clone().map(One).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Box<Event>>, D::Error> {
        let one = Option::<One>::deserialize(deserializer)?;
        Ok(one.map(|One(event)| event))
    }
}

impl Fold for Sums {
    const NAME: &'static str = "sums";
    const VERSION: u32 = 3;
    type News = ();
    type Error = std::convert::Infallible;

    fn filter(&self) -> Filter {
        Filter {
            key: self.only.clone(),
            ..Filter::default()
        }
    }

    fn apply(&mut self, event: &Recorded) -> Result<(), Self::Error> {
        let key = (event.key.clone(), event.rev.get());
        *self.of.entry(key).or_default() += event.position.get();
        Ok(())
    }
}

fn sums(of: &[(&str, u64)]) -> Sums {
    let of = of.iter().map(|(key, n)| (((*key).to_owned(), *n), n + 1));
    Sums {
        of: of.collect(),
        last: Some(EventId::mint()),
        only: None,
        open: Some(Box::new(Event::from(PeerLeft {
            host: "box1".parse().expect("a host name"),
        }))),
    }
}

fn stored(state: &Sums) -> Vec<u8> {
    let tip = Tip {
        position: Position(6),
        id: EventId::mint(),
    };
    encode(state, Position(7), Some(tip), Timestamp::from_secs(5)).expect("a state of a test")
}

#[test]
fn what_was_stored_comes_back() {
    let state = sums(&[("a", 1), ("a/b\n\"", 2), ("", u64::MAX - 1)]);
    let bytes = stored(&state);
    let back = decode(&bytes, &Sums::default()).unwrap();
    assert_eq!((back.state, back.position), (state, Position(7)));
    assert_eq!(back.as_of, Timestamp::from_secs(5));
    assert_eq!(back.tip.unwrap().position, Position(6));
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let bytes = stored(&sums(&[("a", 1), ("b", 2)]));
    let initial = Sums::default();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            assert!(decode(&bad, &initial).is_err(), "bit {bit} of byte {at}");
        }
        assert!(decode(&bytes[..at], &initial).is_err(), "cut at {at}");
    }
    let longer = [&bytes[..], b" "].concat();
    assert!(decode(&longer, &initial).is_err());
}

#[test]
fn what_is_of_something_else_is_refused_by_name() {
    let bytes = stored(&sums(&[("a", 1)]));
    let other = Sums {
        only: Some("a".to_owned()),
        ..Sums::default()
    };
    assert!(decode(&bytes, &other).unwrap_err().contains("other events"));
    // A body of any shape with a digest that holds: somebody else's, or a newer program's.
    for (body, part) in [
        (r#"{"name":"sums"}"#, "not understood"),
        (r#"[1, 2]"#, "not understood"),
        (
            r#"{"name":"sums","version":4,"filter":{},"position":1,"tip":null,
                "as_of":"2026-01-01T00:00:00.000Z","state":{"new":1}}"#,
            "sums version 4, not sums version 3",
        ),
        (
            r#"{"name":"other","version":3,"filter":{},"position":1,"tip":null,
                "as_of":"2026-01-01T00:00:00.000Z","state":7}"#,
            "other version 3",
        ),
        (
            r#"{"name":"sums","version":3,"filter":{},"position":1,"tip":null,
                "as_of":"2026-01-01T00:00:00.000Z","state":7}"#,
            "not understood",
        ),
    ] {
        let bytes = format!("{MAGIC}{}\n{body}", Digest::of(body.as_bytes()));
        let reason = decode(bytes.as_bytes(), &Sums::default()).unwrap_err();
        assert!(reason.contains(part), "{body}: {reason}");
    }
}

#[test]
fn a_state_that_is_too_large_is_not_stored() {
    let key = "x".repeat(1 << 20);
    let of = (0..70).map(|n| ((key.clone(), n), n)).collect();
    let state = Sums {
        of,
        ..Sums::default()
    };
    let refused = encode(&state, Position(1), None, Timestamp::default());
    assert!(refused.unwrap_err().contains("more than"));
}

proptest! {
    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&bytes, &Sums::default()).is_err());
        let bytes = [MAGIC.as_bytes(), Digest::of(&bytes).to_string().as_bytes(), b"\n", &bytes].concat();
        prop_assert!(decode(&bytes, &Sums::default()).is_err());
    }
}
