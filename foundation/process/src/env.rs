//! Every environment variable that any program of Tabbify reads, each once.

/// Filter of the log output, as `tracing-subscriber` reads it; default `info`.
pub const LOG: &str = "TABBIFY_LOG";
/// `json` or `text`: form of the log output; default text.
pub const LOG_FORMAT: &str = "TABBIFY_LOG_FORMAT";
/// Prefix of variables that override a configuration file: `TABBIFY__NODE__LISTEN`.
pub const CONFIG_PREFIX: &str = "TABBIFY__";
/// Where `tabbify up` keeps its data; default `$XDG_DATA_HOME/tabbify`.
pub const DATA_DIR: &str = "TABBIFY_DATA_DIR";
/// Path of the runner program; default: beside `tabbify`.
pub const RUNNER: &str = "TABBIFY_RUNNER";
/// Where the container engine listens, as its own client has it; default `unix:///var/run/docker.sock`.
pub const DOCKER_HOST: &str = "DOCKER_HOST";
/// URL of the platform that `tcli` talks to.
pub const SERVER: &str = "TABBIFY_SERVER";
/// Bearer token of `tcli`, instead of signing in with a key.
pub const TOKEN: &str = "TABBIFY_TOKEN";
/// Base of a user's data files (XDG Base Directory Specification).
pub const XDG_DATA_HOME: &str = "XDG_DATA_HOME";
/// Base of a user's configuration files.
pub const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// Base of a user's caches.
pub const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// The user's home directory.
pub const HOME: &str = "HOME";

/// The value of a variable; `None` if it is not there, empty, or not UTF-8.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the environment"
)]
pub fn read(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Every variable whose name begins with [`CONFIG_PREFIX`].
#[must_use]
pub fn overrides() -> Vec<(String, String)> {
    std::env::vars()
        .filter(|(name, _)| name.starts_with(CONFIG_PREFIX))
        .collect()
}
