//! Query strings: each key known, at most once.

use std::str::FromStr;

use percent_encoding::percent_decode;

use crate::error::Refusal;

/// A parsed query.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string; `known` are the keys that it may have.
    ///
    /// # Errors
    /// [`Refusal::BadRequest`] for an unknown or repeated key, or text that is not UTF-8.
    pub(crate) fn parse(query: Option<&str>, known: &[&str]) -> Result<Self, Refusal> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decoded(key)?, decoded(value)?);
            if !known.contains(&key.as_str()) {
                let key: String = key.chars().take(80).collect();
                let known = known.join(", ");
                let what = format!("{key:?} is not a parameter here; there are: {known}");
                return Err(Refusal::BadRequest(what));
            }
            if pairs.iter().any(|(seen, _)| *seen == key) {
                return Err(Refusal::BadRequest(format!("{key:?} comes twice")));
            }
            pairs.push((key, value));
        }
        Ok(Self(pairs))
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    /// Whether `key` is set: absent is false, present without a value is true.
    ///
    /// # Errors
    /// [`Refusal::BadRequest`] for any other text than true, false, 1 and 0.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, Refusal> {
        match self.get(key) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(other) => {
                let other: String = other.chars().take(80).collect();
                let what = format!("{key}={other:?} is not true or false");
                Err(Refusal::BadRequest(what))
            }
        }
    }

    /// The value of `key` as a `T`.
    ///
    /// # Errors
    /// [`Refusal::BadRequest`] if it is not one.
    pub(crate) fn parsed<T: FromStr>(&self, key: &str) -> Result<Option<T>, Refusal> {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        let wrong = || {
            let text: String = text.chars().take(80).collect();
            Refusal::BadRequest(format!("{key}={text:?} is malformed"))
        };
        text.parse().map(Some).map_err(|_| wrong())
    }
}

fn decoded(text: &str) -> Result<String, Refusal> {
    let spaced: Vec<u8> = text
        .bytes()
        .map(|b| if b == b'+' { b' ' } else { b })
        .collect();
    let bytes = percent_decode(&spaced).collect();
    String::from_utf8(bytes).map_err(|_| Refusal::BadRequest("the query is not UTF-8".to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn queries() {
        let query = Query::parse(Some("tail=5&since=a%20b+c&&x"), &["tail", "since", "x"]).unwrap();
        assert_eq!(query.parsed::<usize>("tail").unwrap(), Some(5));
        assert_eq!(query.get("since"), Some("a b c"));
        assert_eq!(query.get("x"), Some(""));
        assert_eq!(query.parsed::<u8>("none").unwrap(), None);
        assert!(query.parsed::<u8>("since").is_err());
        assert!(Query::parse(None, &[]).is_ok());
        for bad in ["y=1", "tail=1&tail=2", "tail=%ff"] {
            assert!(Query::parse(Some(bad), &["tail"]).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_fine(text in "\\PC{0,60}") {
            let _ = Query::parse(Some(&text), &["tail"]);
        }
    }
}
