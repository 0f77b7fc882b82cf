//! Every environment variable that tcli reads, in one place and once.
//!
//! The names are those of `tabbify_process::env`, which this program does not link.

use std::path::PathBuf;

/// URL of the platform.
pub(crate) const SERVER: &str = "TABBIFY_SERVER";
/// Bearer token, instead of signing in with a key.
pub(crate) const TOKEN: &str = "TABBIFY_TOKEN";
const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
const HOME: &str = "HOME";
const DISPLAY: &str = "DISPLAY";
const WAYLAND_DISPLAY: &str = "WAYLAND_DISPLAY";

/// What the environment says.
pub(crate) struct Environment {
    /// [`SERVER`].
    pub(crate) server: Option<String>,
    /// [`TOKEN`]; never shown, never passed on.
    pub(crate) token: Option<String>,
    /// Base of the user's configuration files, if set.
    pub(crate) config_home: Option<PathBuf>,
    /// Base of the user's caches, if set.
    pub(crate) cache_home: Option<PathBuf>,
    /// The user's home directory.
    pub(crate) home: Option<PathBuf>,
    /// Whether there is a screen for a browser.
    pub(crate) display: bool,
}

impl Environment {
    pub(crate) fn read() -> Self {
        Self {
            server: read(SERVER),
            token: read(TOKEN),
            config_home: read(XDG_CONFIG_HOME).map(PathBuf::from),
            cache_home: read(XDG_CACHE_HOME).map(PathBuf::from),
            home: read(HOME).map(PathBuf::from),
            display: read(DISPLAY).or_else(|| read(WAYLAND_DISPLAY)).is_some(),
        }
    }
}

/// `None` if the variable is not there, empty, or not UTF-8.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the environment"
)]
fn read(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
