//! What was removed is nowhere on the disk: not the value, not its seal, not its key.

use crate::support::{Fallible, Site, files};

/// The forms in which a value could lie about.
fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
    vec![
        value.to_vec(),
        STANDARD_NO_PAD.encode(value).into_bytes(),
        URL_SAFE_NO_PAD.encode(value).into_bytes(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
    ]
}

fn assert_nowhere(site: &Site, what: &[u8]) -> Fallible<()> {
    for (path, bytes) in files(site.dir.path())? {
        for form in forms(what) {
            let found = bytes.windows(form.len()).any(|window| window == form);
            assert!(!found, "{}", path.display());
        }
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_of_what_was_removed() -> Fallible<()> {
    let site = Site::new().await?;
    let (one, two) = (
        b"canary-one-7f31c0de".as_slice(),
        b"canary-two-90ab12ef".as_slice(),
    );
    site.set("owner", "api-key", one).await?;
    assert_nowhere(&site, one)?;
    let first = files(&site.vault_dir())?;
    assert_eq!(first.len(), 2);
    site.set("owner", "api-key", two).await?;
    let second = files(&site.vault_dir())?;
    // A rotation destroys what was before.
    for (_, bytes) in &first {
        assert_nowhere(&site, bytes)?;
    }
    site.remove("owner", "api-key").await?;
    assert_eq!(files(&site.vault_dir())?.len(), 0);
    for (_, bytes) in first.iter().chain(&second) {
        assert_nowhere(&site, bytes)?;
    }
    let site = site.killed().await?;
    for value in [one, two] {
        assert_nowhere(&site, value)?;
    }
    Ok(())
}
