//! Writing the app's id into the copy that is uploaded; the developer's own file is never edited.

use tabbify_types::AppId;
use toml_edit::{DocumentMut, Item, TableLike};

/// Why an id cannot be written into a text.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// The text is not TOML.
    #[error("the manifest is not TOML")]
    NotToml(#[source] toml_edit::TomlError),
    /// There is no `[app]` to write into.
    #[error("the manifest has no [app] table")]
    NoApp,
}

/// The same text with `app.id`: comments, order and spaces stay; line ends become `\n`.
///
/// Give it [`crate::Parsed::text`], so that what is uploaded is in today's form.
///
/// # Errors
///
/// The text is not a manifest.
pub fn stamp(text: &str, app: AppId) -> Result<String, StampError> {
    let mut document: DocumentMut = text.parse().map_err(StampError::NotToml)?;
    let table: Option<&mut dyn TableLike> =
        document.get_mut("app").and_then(Item::as_table_like_mut);
    table
        .ok_or(StampError::NoApp)?
        .insert("id", toml_edit::value(app.to_string()));
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0191e7c2-1111-7222-8333-444455556666";

    fn check(text: &str, expected: &str) {
        let id = ID.parse().unwrap();
        let stamped = stamp(text, id).unwrap();
        assert_eq!(stamped, expected.replace("ID", ID));
        assert_eq!(
            stamp(&stamped, id).unwrap(),
            stamped,
            "stamping twice changes nothing"
        );
        let parsed = crate::Manifest::parse(&stamped, "tabbify.toml").unwrap();
        assert_eq!(parsed.manifest.app.id, Some(id));
    }

    #[test]
    fn the_rest_stays_as_it_is() {
        check(
            "[app]\nname = 'x' # c\n",
            "[app]\nname = 'x' # c\nid = \"ID\"\n",
        );
        check("app.name = 'x'\n", "app.name = 'x'\napp.id = \"ID\"\n");
        check("app = {name='x'}\n", "app = {name='x', id = \"ID\" }\n");
        check(
            "# top\n[env]\nA =   '1'\n\n[app]   # c\nname='x'\n\n\n# build\n[build]\nwasm='a.wasm'\n",
            "# top\n[env]\nA =   '1'\n\n[app]   # c\nname='x'\nid = \"ID\"\n\n\n# build\n[build]\nwasm='a.wasm'\n",
        );
        check(
            "[app]\r\nname = 'x'\r\n",
            "[app]\nname = 'x'\nid = \"ID\"\n",
        );
    }

    #[test]
    fn an_earlier_id_is_replaced() {
        let earlier = "[app]\nid = \"0191e7c2-2222-7222-8333-444455556666\"\nname = 'x'\n";
        check(earlier, "[app]\nid = \"ID\"\nname = 'x'\n");
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let id = ID.parse().unwrap();
        assert!(matches!(stamp("[app", id), Err(StampError::NotToml(_))));
        assert!(matches!(stamp("", id), Err(StampError::NoApp)));
        assert!(matches!(stamp("app = 1", id), Err(StampError::NoApp)));
        assert!(matches!(stamp("[[app]]", id), Err(StampError::NoApp)));
    }
}
