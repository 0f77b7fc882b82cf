//! Reading what earlier releases wrote.
//!
//! ```text
//!  (kind, version, data) ─▶ the shape of that version ─▶ upcast ─▶ … ─▶ the newest shape
//! ```
//!
//! Shapes never change once released. To change an event: leave its shape and its golden file where
//! they are; write the new shape in the next module (`event/v2.rs`) with [`Shape::Before`] naming
//! the old one and [`Shape::upcast`] filling what is new; move the name to that module in `catalog!`;
//! write it only after `platform_version_raised`. An optional field may be added in place, as
//! unknown fields are ignored; a new case of an enum is a new version, as old readers refuse it.

use serde::de::{DeserializeOwned, Deserializer, Error as _};

use super::EventError;

/// One version of one type's data.
pub trait Shape: DeserializeOwned {
    /// Which version, from 1.
    const VERSION: u16;
    /// The shape of the version before; [`Nothing`] for version 1.
    type Before: Shape;
    /// The same fact in this shape. Total: a log of an earlier release must replay.
    fn upcast(before: Self::Before) -> Self;
}

/// What was before version 1: it has no values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nothing {}

impl<'de> serde::Deserialize<'de> for Nothing {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("versions count from 1"))
    }
}

impl Shape for Nothing {
    const VERSION: u16 = 0;
    type Before = Self;
    fn upcast(before: Self) -> Self {
        before
    }
}

/// Reads `data` of `version` and brings it to the shape `T`.
pub(super) fn read<T: Shape>(kind: &str, version: u16, data: &str) -> Result<T, EventError> {
    if version > T::VERSION {
        return Err(EventError::Version {
            kind: kind.to_owned(),
            version,
        });
    }
    if version < T::VERSION {
        return read::<T::Before>(kind, version, data).map(T::upcast);
    }
    serde_json::from_str(data).map_err(|error| EventError::Data {
        kind: kind.to_owned(),
        version,
        detail: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// As the first release wrote it.
    #[derive(Deserialize)]
    struct Measured {
        grams: u32,
    }

    /// The second counts smaller and says whose the measure was.
    #[derive(Debug, PartialEq, Deserialize)]
    struct Measured2 {
        milligrams: u64,
        by: Option<String>,
    }

    /// The third insists on somebody.
    #[derive(Debug, PartialEq, Deserialize)]
    struct Measured3 {
        milligrams: u64,
        by: String,
    }

    impl Shape for Measured {
        const VERSION: u16 = 1;
        type Before = Nothing;
        fn upcast(before: Nothing) -> Self {
            match before {}
        }
    }

    impl Shape for Measured2 {
        const VERSION: u16 = 2;
        type Before = Measured;
        fn upcast(before: Measured) -> Self {
            Self {
                milligrams: u64::from(before.grams) * 1000,
                by: None,
            }
        }
    }

    impl Shape for Measured3 {
        const VERSION: u16 = 3;
        type Before = Measured2;
        fn upcast(before: Measured2) -> Self {
            Self {
                milligrams: before.milligrams,
                by: before.by.unwrap_or_else(|| "nobody".to_owned()),
            }
        }
    }

    fn check<T: Shape + PartialEq + std::fmt::Debug>(version: u16, data: &str, expected: &T) {
        assert_eq!(read::<T>("measured", version, data).unwrap(), *expected);
    }

    #[test]
    fn every_released_version_reads_as_the_newest() {
        let (milligrams, nobody) = (7000, || "nobody".to_owned());
        let first = r#"{"grams":7}"#;
        let by = None;
        check(1, first, &Measured2 { milligrams, by });
        let by = nobody();
        check(1, first, &Measured3 { milligrams, by });
        let second = r#"{"milligrams":7000,"by":"anna"}"#;
        let by = "anna".to_owned();
        check(2, second, &Measured3 { milligrams, by });
        let by = "anna".to_owned();
        check(3, second, &Measured3 { milligrams, by });
    }

    #[test]
    fn a_newer_version_and_another_shape_are_told_apart() {
        let newer = read::<Measured2>("measured", 3, "{}");
        assert!(matches!(newer, Err(EventError::Version { version: 3, .. })));
        for (version, data) in [(0, "{}"), (1, "{}"), (1, r#"{"milligrams":1}"#), (2, "[")] {
            let wrong = read::<Measured2>("measured", version, data);
            assert!(
                matches!(&wrong, Err(EventError::Data { version: v, .. }) if *v == version),
                "{wrong:?}"
            );
        }
    }
}
