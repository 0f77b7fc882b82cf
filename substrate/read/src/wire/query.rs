//! The query of a URL: known names, each at most once.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// The parameters of a request, in the order in which they stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// With this parameter too.
    pub(crate) fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.0.push((name.to_owned(), value.to_string()));
        self
    }

    /// With this parameter too, if there is a value for it.
    pub(crate) fn maybe(self, name: &str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    pub(crate) fn encode(&self) -> String {
        let pair = |(name, value): &(String, String)| {
            format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))
        };
        self.0.iter().map(pair).collect::<Vec<_>>().join("&")
    }

    /// Reads a query; what is wrong with it is the error. A name that is not `known` is refused: a
    /// misspelled filter must not select everything.
    pub(crate) fn decode(text: &str, known: &[&str]) -> Result<Self, String> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&name) {
                let known = known.join(", ");
                return Err(format!("{:?} is not known: {known}", shown(name)));
            }
            if query.get(name).is_some() {
                return Err(format!("{name} stands twice"));
            }
            let value = value.replace('+', " ");
            let value = percent_decode_str(&value).decode_utf8();
            let value = value.map_err(|_| format!("{name} is not UTF-8"))?;
            query = query.with(name, value);
        }
        Ok(query)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The value of `name` as a `T`; why it is none is the error.
    pub(crate) fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, String>
    where
        T::Err: fmt::Display,
    {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let wrong = |error| format!("{name}={:?}: {error}", shown(value));
        value.parse().map(Some).map_err(wrong)
    }
}

/// As much of a caller's text as a message may repeat.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: &[&str] = &["limit", "text", "name"];

    #[test]
    fn refusals_name_what_is_wrong() {
        let long = format!("{}=1", "x".repeat(1000));
        for (text, part) in [
            ("limits=1", "\"limits\" is not known: limit, text, name"),
            ("Limit=1", "not known"),
            ("text=a&limit=1&text=b", "text stands twice"),
            ("text&text", "stands twice"),
            ("text=%ff", "UTF-8"),
            ("=1", "\"\" is not known"),
            (&long, "not known"),
        ] {
            let error = Query::decode(text, KNOWN).unwrap_err();
            assert!(error.contains(part) && error.len() < 200, "{text}: {error}");
        }
        let query = Query::decode("&&limit=-1&text=a+b%2B%26%00&name", KNOWN).unwrap();
        assert_eq!(query.get("text"), Some("a b+&\0"));
        assert_eq!((query.get("name"), query.get("other")), (Some(""), None));
        let error = query.parsed::<usize>("limit").unwrap_err();
        assert!(error.contains("limit=\"-1\""), "{error}");
        assert_eq!(query.parsed::<i8>("limit"), Ok(Some(-1)));
        assert_eq!(query.parsed::<usize>("other"), Ok(None));
    }

    proptest! {
        #[test]
        fn round_trip(text in "(\\PC|[\0-\x1f]){0,30}", name in prop::option::of("\\PC{0,9}"), limit: u64) {
            let query = Query::default().with("limit", limit).with("text", &text).maybe("name", name.as_ref());
            let back = Query::decode(&query.encode(), KNOWN);
            prop_assert_eq!(back, Ok(query));
        }

        #[test]
        fn any_text_is_an_error_or_a_query(text in "[a-z&=%+0-9]{0,40}|\\PC{0,40}") {
            let _ = Query::decode(&text, KNOWN);
        }
    }
}
