//! Signs `tcli` of the same user in: the platform's context in `contexts.toml`.

use std::path::PathBuf;

use anyhow::Context as _;
use tabbify_api::contexts::{Context, Contexts, contexts_path};
use tabbify_process::{env, files};

/// Name of the context that `tabbify up` keeps.
const NAME: &str = "local";

/// Writes `context` into the user's file and makes it the current one. Gives the file's path;
/// `None` if the user has no place for configuration.
pub(crate) fn sign_in(context: Context) -> anyhow::Result<Option<PathBuf>> {
    let [config, home] =
        [env::XDG_CONFIG_HOME, env::HOME].map(|name| env::read(name).map(PathBuf::from));
    let Some(path) = contexts_path(config.as_deref(), home.as_deref()) else {
        return Ok(None);
    };
    let mut contexts = match std::fs::read_to_string(&path) {
        Ok(text) => Contexts::parse(&text)
            .with_context(|| format!("{} is not a contexts file: move it away", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Contexts::default(),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    if contexts
        .get(NAME)
        .is_some_and(|(_, known)| *known == context)
        && contexts.current.as_deref() == Some(NAME)
    {
        return Ok(Some(path));
    }
    contexts.put_current(NAME, context);
    files::private_dir(path.parent().context("a file is in a directory")?)?;
    files::write_atomic(&path, contexts.to_text().as_bytes(), 0o600)?;
    Ok(Some(path))
}
