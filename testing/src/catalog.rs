//! What the catalog of events says about keys and places, as something that can be compared with a
//! log.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::Value;
use tabbify_types::event::About;

/// What an event with this data is filed under, by the catalog.
///
/// # Errors
/// If the data lacks what the catalog names.
pub fn key(about: &About, data: &Value) -> anyhow::Result<String> {
    let text = |field: &str| {
        let found = data
            .get(field)
            .with_context(|| format!("{}: no {field}", about.kind))?;
        match found {
            Value::String(text) => Ok(text.clone()),
            other => bail!("{}: {field} is {other}", about.kind),
        }
    };
    if let Some(literal) = about
        .key
        .strip_prefix('`')
        .and_then(|rest| rest.strip_suffix('`'))
    {
        return match literal.split_once('<') {
            None => Ok(literal.to_owned()),
            Some((start, field)) => Ok(format!("{start}{}", text(field.trim_end_matches('>'))?)),
        };
    }
    match about.key.strip_prefix("the ") {
        Some("token's id") => text("jti"),
        Some("network's name") => text("network"),
        Some("secret's name") => text("name"),
        Some("device's address") => text("address"),
        Some(field) => text(field),
        None => bail!("{}: {:?} is no form of a key", about.kind, about.key),
    }
}

/// A golden file of the catalog: the data of an example, as it stands in a log.
///
/// # Errors
/// If there is none.
pub fn golden(about: &About) -> anyhow::Result<String> {
    let name = format!("{}.v{}.json", about.kind, about.version);
    let path = crate::platform::root()
        .join("foundation/types/golden")
        .join(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.trim_end().to_owned())
}

/// Copies the files of a log, whose folder must not be opened where it is.
///
/// # Errors
/// Those of the file system.
pub fn copy_log(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "extent")
        {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tabbify_types::Event;

    use super::*;

    #[test]
    fn every_golden_file_has_the_key_that_the_catalog_names() {
        for about in Event::CATALOG {
            let data: Value = serde_json::from_str(&golden(about).unwrap()).unwrap();
            let key = key(about, &data).unwrap();
            assert!((1..=128).contains(&key.len()), "{}: {key:?}", about.kind);
        }
    }
}
