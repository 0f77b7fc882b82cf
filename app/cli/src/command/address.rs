//! `address`: the mesh address of an app, derived from its id. Asks nobody.

use serde_json::json;
use tabbify_types::{AppId, AppUla};

use crate::args::AddressArgs;
use crate::command::Tool;
use crate::error::{Code, Exit, Failure, Result};
use crate::folder::LOCK;
use crate::signin::Session;

pub(crate) fn run(tool: &Tool, args: &AddressArgs) -> Result<Exit> {
    let app = match args.uuid.as_deref().or(tool.global.app.as_deref()) {
        Some(text) => text.parse().map_err(|error| {
            Failure::new(Code::Usage, format!("{error}."))
                .fix("An address is derived from the id: see tcli status --app NAME")
        })?,
        None => locked(tool)?,
    };
    let address = AppUla::derive(app);
    tool.output.result(
        &address.to_string(),
        &json!({ "app": app, "address": address }),
    )?;
    Ok(Exit::Fine)
}

/// The folder's app: of the context's platform, or the only one that the lock file has.
fn locked(tool: &Tool) -> Result<AppId> {
    let session = Session::choose(&tool.global, &tool.env)?;
    // The name under which a legacy file's only entry is read does not matter here.
    let nowhere = || {
        "0000000000000000"
            .parse()
            .expect("sixteen zeros are a key id")
    };
    let platform = session.platform().cloned().unwrap_or_else(nowhere);
    let lock = tool.folder.locks(&platform)?;
    let only = || {
        lock.servers
            .values()
            .next()
            .filter(|_| lock.servers.len() == 1)
    };
    let entry = lock.servers.get(platform.as_str()).or_else(only);
    entry.map(|entry| entry.app_id).ok_or_else(|| {
        let why = match lock.servers.len() {
            0 => format!("{} has no {LOCK}.", tool.folder),
            n => format!("{LOCK} has {n} platforms, and none is the context's."),
        };
        Failure::new(Code::Usage, why).fix("Name the app: tcli address UUID")
    })
}
