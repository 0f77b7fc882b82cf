//! What a request asks for, and whether its caller may have it. Pure.

use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;
use tabbify_api::artifact::{ARTIFACTS_PATH, ArtifactPath, file_key};
use tabbify_types::{AppId, AppUla, InstanceUla, VersionNumber};

/// LIMIT: bytes of a path as it is sent: an app, a version, and a file's path with every byte escaped.
const SENT_LEN_MAX: usize = 2048;

/// A file of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) app: AppId,
    pub(crate) version: VersionNumber,
    pub(crate) file: ArtifactPath,
}

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathError {
    /// It is nothing of ours.
    Elsewhere,
    /// It is ours, and cannot be: why.
    Malformed(&'static str),
}

impl Asked {
    /// Reads the path of a request. Parts are found before they are unescaped, so that no escaped slash
    /// makes two of one, and there is one spelling of each number and id.
    pub(crate) fn read(path: &str) -> Result<Self, PathError> {
        let wrong = PathError::Malformed;
        let key = path
            .strip_prefix(ARTIFACTS_PATH)
            .and_then(|key| key.strip_prefix("apps/"))
            .ok_or(PathError::Elsewhere)?;
        if path.len() > SENT_LEN_MAX {
            return Err(wrong("the path is too long"));
        }
        let mut parts = key.splitn(3, '/');
        let (app, version, file) = (parts.next(), parts.next(), parts.next());
        let app = app.and_then(exact::<AppId>);
        let app = app.ok_or_else(|| wrong("the path names no app"))?;
        let version = version.and_then(|version| version.strip_prefix('v'));
        let version = version.and_then(exact::<VersionNumber>);
        let version = version.ok_or_else(|| wrong("the path names no version, such as v1"))?;
        let mut plain = Vec::new();
        for part in file.unwrap_or_default().split('/') {
            let part = percent_decode_str(part).decode_utf8();
            let part = part.map_err(|_| wrong("the file's path is not UTF-8"))?;
            if part.contains('/') {
                return Err(wrong("the file's path has an escaped slash"));
            }
            plain.push(part.into_owned());
        }
        let file = plain.join("/").parse();
        let file = file.map_err(|_| wrong("the file's path is not one of plain parts"))?;
        Ok(Self { app, version, file })
    }

    /// Its key in the object store.
    pub(crate) fn key(&self) -> String {
        file_key(self.app, self.version, self.file.as_str())
    }

    /// Whether whoever speaks from this inner address may have it: the app, or an instance of it.
    pub(crate) fn may_go_to(&self, caller: Ipv6Addr) -> bool {
        let own = AppUla::derive(self.app).addr();
        // An instance's address has the app's groups, and its own number after them.
        let is_instance =
            InstanceUla::try_from(caller).is_ok() && caller.segments()[..5] == own.segments()[..5];
        caller == own || is_instance
    }
}

/// What a text says, if it is the one spelling of it.
fn exact<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    let value: T = text.parse().ok()?;
    (value.to_string() == text).then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop, proptest};
    use tabbify_types::{HostUla, InstanceId};

    use super::*;

    const APP: &str = "0191e7c2-1111-7222-8333-444455556666";

    #[test]
    fn what_a_path_asks_for() {
        let read = |rest: &str| Asked::read(&format!("/v1/artifacts/apps/{APP}/{rest}"));
        assert_eq!(
            read("v1/artifact.json").unwrap().key(),
            format!("apps/{APP}/v1/artifact.json")
        );
        let spaced = read("v12/static/a%20%C3%A4.css").unwrap();
        assert_eq!(spaced.key(), format!("apps/{APP}/v12/static/a ä.css"));
        for bad in [
            "",
            "v1",
            "v1/",
            "1/a",
            "v/a",
            "v01/a",
            "v+1/a",
            "v1//a",
            "v1/../v2/a",
            "v1/%2e%2e/v2/a",
            "v1/%2E%2E/a",
            "v1/a/./b",
            "v1/a%2Fb",
            "v1/..%2f..%2flatest",
            "v1/a%5cb",
            "v1/%00",
            "v1/%ff",
            "latest",
        ] {
            assert!(matches!(read(bad), Err(PathError::Malformed(_))), "{bad}");
        }
        for elsewhere in [
            "/",
            "/v1/artifacts",
            "/v1/artifacts/",
            "/v1/artifacts/latest",
            "/apps/x",
        ] {
            assert_eq!(
                Asked::read(elsewhere),
                Err(PathError::Elsewhere),
                "{elsewhere}"
            );
        }
        for bad in [APP.to_uppercase(), APP.replace('-', ""), "..".to_owned()] {
            let path = format!("/v1/artifacts/apps/{bad}/v1/a");
            assert!(
                matches!(Asked::read(&path), Err(PathError::Malformed(_))),
                "{bad}"
            );
        }
        let long = format!("v1/{}", "a".repeat(SENT_LEN_MAX));
        assert!(matches!(read(&long), Err(PathError::Malformed(_))));
    }

    #[test]
    fn an_app_and_its_instances_and_nobody_else() {
        let asked = Asked::read(&format!("/v1/artifacts/apps/{APP}/v1/a")).unwrap();
        let other = AppId::mint();
        for own in [
            AppUla::derive(asked.app).addr(),
            InstanceUla::derive(asked.app, InstanceId(1)).addr(),
            InstanceUla::derive(asked.app, InstanceId(u32::MAX)).addr(),
        ] {
            assert!(asked.may_go_to(own), "{own}");
        }
        for foreign in [
            AppUla::derive(other).addr(),
            InstanceUla::derive(other, InstanceId(1)).addr(),
            HostUla::new(1, 1).addr(),
            Ipv6Addr::LOCALHOST,
            // The app's groups, in no address that anybody has.
            "fd5a:1f02:44a5:240b:121a:0:1:3".parse().unwrap(),
            "fd5a:1f02:44a5:240b:121a:0:1:1".parse().unwrap(),
        ] {
            assert!(!asked.may_go_to(foreign), "{foreign}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is asked for, it is a file below the folder of a version of that app.
        #[test]
        fn no_path_leads_out_of_its_folder(parts in prop::collection::vec(
            prop::sample::select(vec!["..", ".", "", "a", "%2e", "%2E%2e", "%2f", "/", "\\", "%5c", "%00", "ä", "%", "%zz"]), 0..8
        ), text in any::<String>()) {
            for rest in [parts.concat(), parts.join("/"), text] {
                let Ok(asked) = Asked::read(&format!("/v1/artifacts/apps/{APP}/v1/{rest}")) else {
                    continue;
                };
                let key = asked.key();
                let folder = format!("apps/{APP}/v1/");
                proptest::prop_assert!(key.strip_prefix(&folder).is_some_and(|rest| !rest.is_empty()));
                proptest::prop_assert!(!key.split('/').any(|part| part.is_empty() || part == "." || part == ".."));
            }
        }

        #[test]
        fn no_path_panics(path in any::<String>()) {
            let _ = Asked::read(&path);
            let _ = Asked::read(&format!("/v1/artifacts/apps/{path}"));
        }
    }
}
