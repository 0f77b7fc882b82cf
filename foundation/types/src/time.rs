//! Wall-clock time as events and tokens carry it. Nothing here reads a clock.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ParseError;

/// Milliseconds since the Unix epoch, written as RFC 3339 in UTC. Never used for order.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(u64);

/// LIMIT: last representable time, 9999-12-30T21:59:59.999Z (the bound of RFC 3339's four digits,
/// less the largest zone offset).
const MILLIS_MAX: u64 = 253_402_207_199_999;

impl Timestamp {
    /// From milliseconds since the Unix epoch; later than the year 9999 becomes its end.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(if millis > MILLIS_MAX {
            MILLIS_MAX
        } else {
            millis
        })
    }

    /// From whole seconds since the Unix epoch, as in a token.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self::from_millis(secs.saturating_mul(1000))
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    #[must_use]
    pub const fn secs(self) -> u64 {
        self.0 / 1000
    }

    /// The time from `earlier` to this; none if it is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This time and `span` later.
    #[must_use]
    pub fn plus(self, span: std::time::Duration) -> Self {
        Self::from_millis(
            self.0
                .saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0).map_err(|_| fmt::Error)?;
        let time = jiff::Timestamp::from_millisecond(millis).map_err(|_| fmt::Error)?;
        write!(f, "{time:.3}")
    }
}

impl FromStr for Timestamp {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new("a time (RFC 3339, from 1970 to 9999)", text);
        let time: jiff::Timestamp = text.parse().map_err(|_| wrong())?;
        let millis = u64::try_from(time.as_millisecond()).map_err(|_| wrong())?;
        if millis > MILLIS_MAX {
            Err(wrong())
        } else {
            Ok(Self(millis))
        }
    }
}

impl TryFrom<String> for Timestamp {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let time = Timestamp::from_millis(1_795_359_600_123);
        assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        assert_eq!(Timestamp::default().to_string(), "1970-01-01T00:00:00.000Z");
        let last = Timestamp::from_millis(u64::MAX);
        assert_eq!(last.to_string().parse::<Timestamp>().unwrap(), last);
        for bad in ["", "yesterday", "1969-12-31T23:59:59Z", "2026-11-22"] {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
    }
}
