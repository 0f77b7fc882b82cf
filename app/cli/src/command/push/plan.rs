//! `push --plan`: what would be built, uploaded and put into service; changes nothing at all.

use serde_json::json;
use tabbify_types::AppUla;

use crate::artifact::Item;
use crate::command::push::identity::Identity;
use crate::command::push::{Pusher, Source};
use crate::error::{Exit, Failure, Result};
use crate::output;

pub(crate) fn show(pusher: &Pusher<'_>, identity: &Identity, no_deploy: bool) -> Result<Exit> {
    let name = &pusher.parsed.manifest.app.name;
    let server = pusher.client.server();
    let app = match identity {
        Identity::New(None) => "new, with an id of its own".to_owned(),
        Identity::New(Some(id)) => format!("new, with the id {id}"),
        Identity::Known(app) => format!("{}  {}", app.id, AppUla::derive(app.id)),
        Identity::Adopted(app) => format!("{}, adopted into tabbify.lock", app.id),
    };
    let existing = match identity {
        Identity::New(_) => None,
        Identity::Known(app) | Identity::Adopted(app) => Some(app),
    };
    let serving = existing.and_then(|app| app.serving);
    // After a build the file is another one, so an old file's mistakes are not reported.
    let entry = pusher.entry();
    let command = pusher.source.command.as_deref();
    let upload = upload(&entry, command.is_some(), pusher.source);
    if let (Err(failure), None) = (entry, command) {
        return Err(failure.fix("Nothing was changed."));
    }
    let deploy = match (no_deploy, serving) {
        (true, Some(serving)) => format!("no; v{serving} goes on serving"),
        (true, None) => "no".to_owned(),
        (false, Some(serving)) => format!("the new version, in place of v{serving}"),
        (false, None) => "the new version".to_owned(),
    };
    let rows = [
        ("app", format!("{name}  {app}")),
        ("build", command.unwrap_or("nothing to run").to_owned()),
        ("upload", upload),
        ("deploy", deploy),
    ];
    let rows: Vec<_> = rows.map(|(key, value)| vec![key.to_owned(), value]).into();
    let text = format!(
        "Plan for {server}; nothing was changed.\n{}",
        output::table(&rows)
    );
    let document = json!({
        "plan": {
            "server": server.as_str(),
            "app": { "name": name, "id": existing.map(|app| app.id), "new": existing.is_none() },
            "build": command,
            "files": pusher_files(pusher, command.is_some()),
            "serving": serving,
            "deploy": !no_deploy,
        },
    });
    pusher.tool.output.result(&text, &document)?;
    Ok(Exit::Fine)
}

fn upload(entry: &std::result::Result<Item, Failure>, rebuilt: bool, source: &Source) -> String {
    let (path, name) = (&source.path, source.kind.entry());
    match entry {
        Ok(item) => {
            let size = output::size(item.listed.size);
            let now = if rebuilt { " before the build" } else { "" };
            format!("tabbify.toml, {path} as {name} ({size}{now})")
        }
        Err(_) => format!("tabbify.toml, {path} as {name} (not built yet)"),
    }
}

/// The files whose content is known now: those that no build makes.
fn pusher_files(pusher: &Pusher<'_>, rebuilt: bool) -> Vec<serde_json::Value> {
    let entry = if rebuilt { None } else { pusher.entry().ok() };
    let digest =
        entry.map(|item| json!({ "size": item.listed.size, "digest": item.listed.digest }));
    vec![
        json!({ "path": pusher.source.kind.entry(), "from": pusher.source.path, "now": digest }),
        json!({ "path": "tabbify.toml", "from": pusher.parsed.manifest.file(), "now": null }),
    ]
}
