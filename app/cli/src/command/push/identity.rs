//! Which app a folder is on a platform: decided from the lock file, the flag and the platform's
//! list, before anything is changed.

use tabbify_api::apps::AppView;
use tabbify_types::{AppId, AppName};

use crate::error::{Code, Failure, Result};
use crate::folder::LOCK;
use crate::server::Server;

/// What this folder and the person say.
pub(crate) struct Wanted<'a> {
    /// `app.name`.
    pub(crate) name: &'a AppName,
    /// `app.id`, which only copies and legacy files have.
    pub(crate) declared: Option<AppId>,
    /// `--app`: a name or an id.
    pub(crate) flag: Option<&'a str>,
    /// The lock file's entry for the platform.
    pub(crate) lock: Option<AppId>,
}

/// Which app it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// None yet; the id is minted, unless the manifest has one.
    New(Option<AppId>),
    /// The one that the lock file names.
    Known(AppView),
    /// One that exists and that the lock file will name.
    Adopted(AppView),
}

pub(crate) fn identify(wanted: &Wanted<'_>, apps: &[AppView], server: &Server) -> Result<Identity> {
    let by_id = |id: AppId| apps.iter().find(|app| app.id == id);
    if let Some(flag) = wanted.flag {
        let app = apps
            .iter()
            .find(|app| app.name.as_str() == flag || app.id.to_string() == flag);
        let app = app.ok_or_else(|| {
            let what = format!("{server} has no app \"{flag}\".");
            Failure::new(Code::UnknownApp, what).fix("Push it as a new one: tcli push")
        })?;
        check_name(wanted.name, app, "--app names")?;
        return match wanted.lock {
            Some(id) if id == app.id => Ok(Identity::Known(app.clone())),
            // The lock names another app of this platform: one of the two is a mistake.
            Some(id) if by_id(id).is_some() => Err(other_lock(app, id)),
            Some(_) | None => Ok(Identity::Adopted(app.clone())),
        };
    }
    match (wanted.lock, wanted.declared) {
        (Some(lock), Some(declared)) if lock != declared => {
            let what = format!("tabbify.toml says app.id = {declared}, and {LOCK} says {lock}.");
            Err(Failure::new(Code::LockMismatch, what).fix("Remove app.id from tabbify.toml."))
        }
        (Some(id), _) => {
            let app = by_id(id).ok_or_else(|| unknown_lock(server, id))?;
            check_name(wanted.name, app, &format!("{LOCK} names"))?;
            Ok(Identity::Known(app.clone()))
        }
        (None, Some(id)) if by_id(id).is_some() => {
            let app = by_id(id).expect("looked up in the line above");
            check_name(wanted.name, app, "app.id names")?;
            Ok(Identity::Adopted(app.clone()))
        }
        (None, declared) => match apps.iter().any(|app| app.name == *wanted.name) {
            true => Err(name_taken(wanted.name)),
            false => Ok(Identity::New(declared)),
        },
    }
}

fn check_name(name: &AppName, app: &AppView, source: &str) -> Result<()> {
    if app.name == *name {
        return Ok(());
    }
    let what = format!(
        "{source} app \"{}\" ({}), and tabbify.toml says app.name = \"{name}\".",
        app.name, app.id
    );
    let fix = format!(
        "Another app's file? Remove it, and tcli push makes a new app. Renamed? An app keeps its \
         name: set it back to \"{}\".",
        app.name
    );
    Err(Failure::new(Code::LockMismatch, what).fix(fix))
}

fn other_lock(app: &AppView, lock: AppId) -> Failure {
    let what = format!(
        "{LOCK} names app {lock}, and --app names \"{}\" ({}).",
        app.name, app.id
    );
    let fix = format!(
        "If this folder is \"{}\", remove {LOCK} and push again.",
        app.name
    );
    Failure::new(Code::LockMismatch, what).fix(fix)
}

/// The lock names an app that the platform does not have.
pub(crate) fn unknown_lock(server: &Server, id: AppId) -> Failure {
    let what = format!("{LOCK} names app {id}, which {server} does not know.");
    let fix = format!("Another app's file? Remove {LOCK}, and tcli push makes a new app.");
    Failure::new(Code::LockMismatch, what).fix(fix)
}

/// The name belongs to an app, and nothing says that it is this folder's.
pub(crate) fn name_taken(name: &AppName) -> Failure {
    let what = format!("App \"{name}\" exists and this folder has no {LOCK}.");
    let fix = format!("Yours? tcli push --app {name}. New? Rename it.");
    Failure::new(Code::NameTaken, what).fix(fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = "0191e7c2-1111-7222-8333-444455556666";
    const BLOG: &str = "0191e7c2-2222-7222-8333-444455556666";
    const GONE: &str = "0191e7c2-3333-7222-8333-444455556666";

    fn view(id: &str, name: &str) -> AppView {
        let json = serde_json::json!({
            "id": id, "name": name, "tenant": "main", "address": "fd5a:1f02:44a5:240b:121a::1",
            "url": "http://x", "access": "private", "status": "healthy", "serving": 1,
            "latest": 1, "primary": 1, "created": "2026-01-01T00:00:00Z",
        });
        serde_json::from_value(json).unwrap()
    }

    /// `name lock flag declared` → outcome, with `-` for none.
    fn decide(name: &str, lock: &str, flag: &str, declared: &str) -> String {
        let id = |text: &str| (text != "-").then(|| text.parse().unwrap());
        let name = name.parse().unwrap();
        let flag = (flag != "-").then_some(flag);
        let wanted = Wanted {
            name: &name,
            declared: id(declared),
            flag,
            lock: id(lock),
        };
        let apps = [view(SHOP, "shop"), view(BLOG, "blog")];
        let server = crate::server::DEFAULT.parse().unwrap();
        match identify(&wanted, &apps, &server) {
            Ok(Identity::New(None)) => "new".to_owned(),
            Ok(Identity::New(Some(id))) => format!("new {id}"),
            Ok(Identity::Known(app)) => format!("known {}", app.name),
            Ok(Identity::Adopted(app)) => format!("adopted {}", app.name),
            Err(failure) => failure.code,
        }
    }

    #[test]
    fn every_case() {
        let check = |name: &str, lock: &str, flag: &str, declared: &str, expected: &str| {
            let got = decide(name, lock, flag, declared);
            assert_eq!(
                got, expected,
                "name {name}, lock {lock}, flag {flag}, id {declared}"
            );
        };
        check("news", "-", "-", "-", "new");
        check("news", "-", "-", GONE, &format!("new {GONE}"));
        check("shop", "-", "-", "-", "name_taken");
        check("shop", "-", "-", GONE, "name_taken");
        check("shop", "-", "-", SHOP, "adopted shop");
        check("news", "-", "-", SHOP, "lock_mismatch");
        check("shop", SHOP, "-", "-", "known shop");
        check("shop", SHOP, "-", SHOP, "known shop");
        check("shop", SHOP, "-", BLOG, "lock_mismatch");
        check("shop", BLOG, "-", "-", "lock_mismatch");
        check("news", SHOP, "-", "-", "lock_mismatch");
        check("shop", GONE, "-", "-", "lock_mismatch");
        check("shop", "-", "shop", "-", "adopted shop");
        check("shop", "-", SHOP, "-", "adopted shop");
        check("shop", GONE, "shop", "-", "adopted shop");
        check("shop", SHOP, "shop", "-", "known shop");
        check("shop", BLOG, "shop", "-", "lock_mismatch");
        check("shop", "-", "blog", "-", "lock_mismatch");
        check("news", "-", "news", "-", "unknown_app");
    }
}
