//! `contexts.toml`: which platforms a person uses and the key that signs in to each.
//!
//! `tabbify up` writes it when it mints an owner key, `tcli` reads it; both go through here, so the
//! file has one form. Pure: the caller reads and writes the text.
//!
//! ```toml
//! version = 1
//! current = "local"
//!
//! [context.local]
//! server = "http://localhost:8090"
//! platform = "0123456789abcdef"
//! owner_key = "/home/anna/.local/share/tabbify/keys/owner.key"
//! subject = "user:owner"
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tabbify_types::SigningKeyId;

/// Where the file is, below the user's base directory for configuration.
pub const CONTEXTS_FILE: &str = "tabbify/contexts.toml";

/// LIMIT: the whole file, in bytes.
pub const CONTEXTS_LEN_MAX: usize = 256 * 1024;

/// The only version of this shape.
const VERSION: u16 = 1;

/// The whole file. The default is the file of somebody who has none yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    version: u16,
    /// Name of the context that counts when nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// Every context by its name.
    #[serde(default)]
    pub context: BTreeMap<String, Context>,
}

/// How to reach one platform, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// URL of the platform's node, such as `http://localhost:8090`, without a slash at its end.
    pub server: String,
    /// The platform's id: that of its root key. Proofs are made out to it.
    pub platform: SigningKeyId,
    /// File of mode 0600 with the key that signs in, as base64url of the Ed25519 seed.
    pub owner_key: PathBuf,
    /// Whose key it is, such as `user:owner`.
    pub subject: String,
}

/// Why a text is not a [`Contexts`].
#[derive(Debug, thiserror::Error)]
pub enum ContextsError {
    /// Larger than any file of ours.
    #[error("it has {0} bytes, and {CONTEXTS_LEN_MAX} are allowed")]
    TooLong(usize),
    /// Not TOML, or not of this shape.
    #[error("it is not a contexts file")]
    Malformed(#[source] toml::de::Error),
    /// Written by a later release.
    #[error("it has version {0}, and this program reads version {VERSION}")]
    Version(u16),
    /// `current` names a context that the file does not have.
    #[error("its current context is {0:?}, which it does not have")]
    NoSuchContext(String),
}

impl Default for Contexts {
    fn default() -> Self {
        Self {
            version: VERSION,
            current: None,
            context: BTreeMap::new(),
        }
    }
}

impl Contexts {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`ContextsError`], the first rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, ContextsError> {
        /// Read first and alone: a later version may have keys that this one does not know.
        #[derive(Deserialize)]
        struct Head {
            version: u16,
        }

        if text.len() > CONTEXTS_LEN_MAX {
            return Err(ContextsError::TooLong(text.len()));
        }
        let head: Head = toml::from_str(text).map_err(ContextsError::Malformed)?;
        if head.version != VERSION {
            return Err(ContextsError::Version(head.version));
        }
        let contexts: Self = toml::from_str(text).map_err(ContextsError::Malformed)?;
        match &contexts.current {
            Some(name) if !contexts.context.contains_key(name) => {
                Err(ContextsError::NoSuchContext(name.clone()))
            }
            _ => Ok(contexts),
        }
    }

    /// The text of the file, which [`Contexts::parse`] reads back.
    #[must_use]
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("a struct of text, numbers and tables is always TOML")
    }

    /// The context that counts when nothing else is said, with its name.
    #[must_use]
    pub fn current(&self) -> Option<(&str, &Context)> {
        self.get(self.current.as_deref()?)
    }

    /// The context of this name, with the name as it stands in the file.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<(&str, &Context)> {
        self.context
            .get_key_value(name)
            .map(|(name, context)| (name.as_str(), context))
    }

    /// The context of a server: the current one if it is of this server, else the first by name.
    #[must_use]
    pub fn of_server(&self, server: &str) -> Option<(&str, &Context)> {
        let of_server = |(_, context): &(&str, &Context)| context.server == server;
        let by_name = || {
            self.context
                .iter()
                .map(|(name, context)| (name.as_str(), context))
        };
        self.current()
            .filter(of_server)
            .or_else(|| by_name().find(of_server))
    }

    /// Adds or replaces a context and makes it the current one.
    pub fn put_current(&mut self, name: &str, context: Context) {
        self.context.insert(name.to_owned(), context);
        self.current = Some(name.to_owned());
    }
}

/// Path of the file: below `config_home` (`$XDG_CONFIG_HOME`), else below `home/.config`. `None` if
/// neither is known; a relative path counts as unset, as the XDG Base Directory Specification says.
#[must_use]
pub fn contexts_path(config_home: Option<&Path>, home: Option<&Path>) -> Option<PathBuf> {
    let config_home = config_home
        .filter(|path| path.is_absolute())
        .map(Path::to_path_buf);
    let home = home.filter(|path| path.is_absolute());
    Some(
        config_home
            .or_else(|| Some(home?.join(".config")))?
            .join(CONTEXTS_FILE),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(server: &str) -> Context {
        Context {
            server: server.to_owned(),
            platform: "0123456789abcdef".parse().unwrap(),
            owner_key: "/data/keys/owner.key".into(),
            subject: "user:owner".to_owned(),
        }
    }

    #[test]
    fn the_documented_form_is_what_is_written() {
        let mut contexts = Contexts::default();
        contexts.put_current("local", context("http://localhost:8090"));
        let text = contexts.to_text();
        assert_eq!(
            text,
            "version = 1\ncurrent = \"local\"\n\n[context.local]\n\
             server = \"http://localhost:8090\"\nplatform = \"0123456789abcdef\"\n\
             owner_key = \"/data/keys/owner.key\"\nsubject = \"user:owner\"\n"
        );
        assert_eq!(Contexts::parse(&text).unwrap(), contexts);
        assert_eq!(Contexts::parse("version = 1").unwrap(), Contexts::default());
        assert_eq!(
            Contexts::parse(&Contexts::default().to_text()).unwrap(),
            Contexts::default()
        );
    }

    #[test]
    fn the_current_context_wins_among_those_of_a_server() {
        let mut contexts = Contexts::default();
        contexts.put_current("b", context("http://one"));
        contexts.put_current("a", context("http://one"));
        contexts.put_current("c", context("http://two"));
        let name = |found: Option<(&str, &Context)>| found.map(|(name, _)| name.to_owned());
        assert_eq!(name(contexts.current()).as_deref(), Some("c"));
        assert_eq!(name(contexts.of_server("http://one")).as_deref(), Some("a"));
        contexts.current = Some("b".to_owned());
        assert_eq!(name(contexts.of_server("http://one")).as_deref(), Some("b"));
        assert_eq!(name(contexts.of_server("http://three")), None);
    }

    #[test]
    fn anything_else_is_refused() {
        let check = |text: &str, expected: &str| {
            let error = Contexts::parse(text).unwrap_err();
            assert!(
                format!("{error:?}").starts_with(expected),
                "{text}: {error:?}"
            );
        };
        check("", "Malformed");
        check("version = 1\nserver = \"x\"", "Malformed");
        check("version = 1\n[context.a]\nserver = \"x\"", "Malformed");
        check("version = 2\nnew_key = true", "Version(2)");
        check("version = 1\ncurrent = \"b\"", "NoSuchContext(\"b\")");
        check(&"#".repeat(CONTEXTS_LEN_MAX + 1), "TooLong");
        let bad_platform = "version = 1\n[context.a]\nserver = \"x\"\nplatform = \"../../etc\"\n\
                            owner_key = \"k\"\nsubject = \"s\"";
        check(bad_platform, "Malformed");
    }

    #[test]
    fn relative_bases_count_as_unset() {
        let path = |config: &str, home: &str| {
            contexts_path(Some(Path::new(config)), Some(Path::new(home)))
        };
        assert_eq!(path("/c", "/h"), Some("/c/tabbify/contexts.toml".into()));
        assert_eq!(
            path("c", "/h"),
            Some("/h/.config/tabbify/contexts.toml".into())
        );
        assert_eq!(path("c", "h"), None);
        assert_eq!(contexts_path(None, None), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_refused_or_comes_back(text in "(version = 1\n)?(\\PC|\n){0,60}") {
            if let Ok(contexts) = Contexts::parse(&text) {
                proptest::prop_assert_eq!(Contexts::parse(&contexts.to_text()).ok(), Some(contexts));
            }
        }

        #[test]
        fn any_context_round_trips(name in "\\PC{1,20}", server in "\\PC{0,40}", key in "\\PC{0,40}") {
            let mut contexts = Contexts::default();
            let context = Context { owner_key: key.into(), ..context(&server) };
            contexts.put_current(&name, context);
            proptest::prop_assert_eq!(Contexts::parse(&contexts.to_text()).ok(), Some(contexts));
        }
    }
}
