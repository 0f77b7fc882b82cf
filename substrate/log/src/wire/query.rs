//! What to read, as the query of a URL: `after=7&limit=100&segment=tenant_*.apps&type=app_started&key=x`.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tabbify_api::log::{FILTER_GLOBS_MAX, Filter, PAGE_EVENTS_MAX};
use tabbify_types::Position;

/// Events of a page for whoever names no limit.
const LIMIT_DEFAULT: usize = 1000;

/// The parts of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) after: Position,
    pub(crate) limit: usize,
    pub(crate) filter: Filter,
}

impl Query {
    pub(crate) fn encode(&self) -> String {
        let mut text = format!("after={}&limit={}", self.after, self.limit);
        let mut add = |name: &str, value: &str| {
            let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
            text.push_str(&format!("&{name}={value}"));
        };
        let filter = &self.filter;
        filter
            .segments
            .iter()
            .for_each(|glob| add("segment", glob.as_str()));
        filter.kinds.iter().for_each(|kind| add("type", kind));
        filter.key.iter().for_each(|key| add("key", key));
        text
    }

    /// Reads a query; what is wrong with it is the error. A name that is not known is refused: a
    /// misspelled filter must not select everything.
    pub(crate) fn decode(text: &str) -> Result<Self, String> {
        let mut query = Self {
            after: Position(0),
            limit: LIMIT_DEFAULT,
            filter: Filter::default(),
        };
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = value.replace('+', " ");
            let value = percent_decode_str(&value).decode_utf8();
            let value = value.map_err(|_| format!("{name} is not UTF-8"))?;
            query.take(name, &value)?;
        }
        Ok(query)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = || format!("{name} is {value:?}, and must be a whole number");
        let few = |len: usize| {
            let many = || format!("more than {FILTER_GLOBS_MAX} times {name}");
            (len <= FILTER_GLOBS_MAX).then_some(()).ok_or_else(many)
        };
        let filter = &mut self.filter;
        match name {
            "after" => self.after = value.parse().map_err(|_| number())?,
            "limit" => {
                let limit: u64 = value.parse().map_err(|_| number())?;
                let limit = usize::try_from(limit).unwrap_or(PAGE_EVENTS_MAX);
                self.limit = limit.min(PAGE_EVENTS_MAX);
            }
            "segment" => {
                let glob = value.parse().map_err(|error| format!("{error}"));
                filter.segments.push(glob?);
                few(filter.segments.len())?;
            }
            "type" => {
                filter.kinds.push(value.to_owned());
                few(filter.kinds.len())?;
            }
            "key" if filter.key.is_none() => filter.key = Some(value.to_owned()),
            "key" => return Err("key stands twice".to_owned()),
            _ => {
                let name: String = name.chars().take(80).collect();
                return Err(format!(
                    "{name:?} is not known: after, limit, segment, type, key"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refusals_name_what_is_wrong() {
        let many = "segment=a&".repeat(65);
        for (text, part) in [
            ("after=-1", "after"),
            ("after=1&limit=x", "limit"),
            ("segment=A", "segment glob"),
            ("segments=a", "\"segments\" is not known"),
            ("key=a&key=b", "twice"),
            ("key=%ff", "UTF-8"),
            (&many, "64 times segment"),
            (&many.replace("segment", "type"), "64 times type"),
        ] {
            let error = Query::decode(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let query = Query::decode("segment=tenant_*.chat&key=a+b%2B&limit=99999999999").unwrap();
        assert_eq!(query.filter.segments[0].as_str(), "tenant_*.chat");
        assert_eq!(query.filter.key.as_deref(), Some("a b+"));
        assert_eq!(query.limit, PAGE_EVENTS_MAX);
    }

    proptest! {
        #[test]
        fn round_trip(
            after: u64,
            limit in 0..=PAGE_EVENTS_MAX,
            kinds in prop::collection::vec("\\PC{0,20}", 0..4),
            key in prop::option::of("(\\PC|[\0-\x1f]){0,20}"),
            globs in prop::collection::vec("[a-z*]{1,3}(\\.[a-z0-9_-]{1,5}){0,2}", 0..4),
        ) {
            let globs = globs.iter().filter_map(|glob| glob.parse().ok());
            let filter = Filter { segments: globs.collect(), kinds, key };
            let query = Query { after: Position(after), limit, filter };
            prop_assert_eq!(Query::decode(&query.encode()), Ok(query));
        }

        #[test]
        fn any_text_is_an_error_or_a_query(text in "\\PC{0,60}") {
            let _ = Query::decode(&text);
        }
    }
}
