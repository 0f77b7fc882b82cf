//! From words that people type to a query of the text index that can mean nothing but those words.

use tabbify_api::read::WORDS_MAX;

use super::select::{bounded, refused};
use crate::pool::Asked;

/// What the text index is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Search {
    /// There are no words: every event is wanted.
    Everything,
    /// There are words and none of them can occur, such as `!!!`.
    Nothing,
    /// An expression of FTS5.
    Match(String),
}

/// Every word becomes a quoted phrase, in which nothing has a meaning; a `*` at its end is the only
/// thing of the query language that is let through.
pub(crate) fn words(typed: &str) -> Result<Search, Asked> {
    let typed = bounded("text", typed)?;
    let mut phrases = Vec::new();
    let mut count = 0;
    // A NUL would end the expression for SQLite.
    for word in typed.split(|c: char| c.is_whitespace() || c == '\0') {
        if word.is_empty() {
            continue;
        }
        count += 1;
        if count > WORDS_MAX {
            return Err(refused("text", format!("more than {WORDS_MAX} words")));
        }
        let stem = word.trim_end_matches('*');
        if stem.chars().any(char::is_alphanumeric) {
            let prefix = if stem.len() < word.len() { " *" } else { "" };
            phrases.push(format!("{}{prefix}", phrase(stem)));
        }
    }
    Ok(match (count, phrases.is_empty()) {
        (0, _) => Search::Everything,
        (_, true) => Search::Nothing,
        (_, false) => Search::Match(format!(
            "{{type key actor data}} : ({})",
            phrases.join(" AND ")
        )),
    })
}

/// A phrase that a column with exactly `value` in it has: narrows a search for which the value itself
/// is compared afterwards. None, if the index may not see the value as words.
pub(crate) fn exactly(column: &str, value: &str) -> Option<String> {
    let is_plain = value.bytes().any(|b| b.is_ascii_alphanumeric()) && !value.contains('\0');
    is_plain.then(|| format!("{column} : {}", phrase(value)))
}

fn phrase(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching(typed: &str) -> String {
        match words(typed).unwrap() {
            Search::Match(text) => text,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn words_are_phrases() {
        assert_eq!(words("  ").unwrap(), Search::Everything);
        assert_eq!(words("!!! ***").unwrap(), Search::Nothing);
        let all = "{type key actor data} : ";
        assert_eq!(matching("shop"), format!("{all}(\"shop\")"));
        assert_eq!(
            matching("user:owner  sh* \"x"),
            format!("{all}(\"user:owner\" AND \"sh\" * AND \"\"\"x\")")
        );
        assert_eq!(matching("a\0b"), format!("{all}(\"a\" AND \"b\")"));
        assert_eq!(
            matching("OR NEAR(a)"),
            format!("{all}(\"OR\" AND \"NEAR(a)\")")
        );
        assert!(words(&"a ".repeat(17)).is_err());
        assert!(words(&"a".repeat(257)).is_err());
    }

    #[test]
    fn exact_values_narrow_only_where_the_index_sees_them() {
        assert_eq!(exactly("key", "a\"b"), Some("key : \"a\"\"b\"".to_owned()));
        assert_eq!(exactly("key", "---"), None);
        assert_eq!(exactly("key", "a\0b"), None);
        assert_eq!(exactly("key", "ä"), None);
    }
}
