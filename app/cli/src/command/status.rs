//! `status`: how one app is.

use serde_json::json;
use tabbify_api::apps::{AppStatus, AppView};
use tabbify_types::VersionNumber;
use tabbify_types::event::v1::{Access, RuntimeKind};

use crate::command::Tool;
use crate::error::{Exit, Result};
use crate::output;

pub(crate) fn run(tool: &Tool) -> Result<Exit> {
    let client = tool.client()?;
    let app = tool.app(&client, None)?;
    tool.output.result(&text(&app), &json!({ "app": app }))?;
    Ok(Exit::Fine)
}

fn text(app: &AppView) -> String {
    let access = match app.access {
        Access::Private => "private",
        Access::Public => "public",
    };
    let mut rows = vec![
        ("app", format!("{}  {}", app.name, app.id)),
        ("status", status(app.status).to_owned()),
        ("url", format!("{}  {access}", app.url)),
        ("address", app.address.to_string()),
        ("serving", version(app.serving)),
        ("latest", version(app.latest)),
    ];
    if app.instances.is_empty() {
        let primary = app.primary.iter();
        rows.extend(primary.map(|primary| ("instance", format!("#{primary}"))));
    }
    rows.extend(app.instances.iter().map(|it| {
        let mark = match app.primary == Some(it.instance) {
            true => "  primary",
            false => "",
        };
        let (instance, host, runtime) = (it.instance, &it.host, runtime(it.runtime));
        (
            "instance",
            format!("#{instance} on {host}  {runtime}{mark}"),
        )
    }));
    rows.push(("created", app.created.to_string()));
    rows.extend(
        app.problem
            .as_deref()
            .map(|text| ("problem", output::printable(text))),
    );
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(key, value)| vec![key.to_owned(), value])
        .collect();
    output::table(&rows)
}

/// As manifests write it.
const fn runtime(runtime: RuntimeKind) -> &'static str {
    match runtime {
        RuntimeKind::WasmHttp => "wasm-http",
        RuntimeKind::Docker => "docker",
        RuntimeKind::Firecracker => "firecracker",
    }
}

/// As the contract writes it.
pub(crate) fn status(status: AppStatus) -> &'static str {
    match status {
        AppStatus::New => "new",
        AppStatus::Deploying => "deploying",
        AppStatus::Healthy => "healthy",
        AppStatus::Idle => "idle",
        AppStatus::Failed => "failed",
    }
}

/// `v3`, or `-` for none.
pub(crate) fn version(version: Option<VersionNumber>) -> String {
    version.map_or_else(|| "-".to_owned(), |version| format!("v{version}"))
}
