//! `apps`: every app of the tenant, one a line.

use serde_json::json;

use crate::command::Tool;
use crate::command::status::{status, version};
use crate::error::{Exit, Result};
use crate::output;

pub(crate) fn run(tool: &Tool) -> Result<Exit> {
    let client = tool.client()?;
    let apps = client.apps()?;
    let mut rows = vec![
        ["NAME", "STATUS", "SERVING", "LATEST", "URL"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(apps.iter().map(|app| {
        let (serving, latest) = (version(app.serving), version(app.latest));
        let status = status(app.status).to_owned();
        vec![
            app.name.to_string(),
            status,
            serving,
            latest,
            app.url.clone(),
        ]
    }));
    let text = if apps.is_empty() {
        format!(
            "{} has no apps yet. Next: tcli init && tcli push",
            client.server()
        )
    } else {
        output::table(&rows)
    };
    tool.output.result(&text, &json!({ "apps": apps }))?;
    Ok(Exit::Fine)
}
