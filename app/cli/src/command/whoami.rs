//! `whoami`: who the platform takes the caller for.

use serde_json::json;

use crate::command::Tool;
use crate::error::{Exit, Result};
use crate::output;

pub(crate) fn run(tool: &Tool) -> Result<Exit> {
    let client = tool.client()?;
    let identity = client.whoami()?;
    let platform = client.platform()?;
    let rows = [
        ("subject", identity.subject.clone()),
        ("tenant", identity.tenant.to_string()),
        ("kind", identity.kind.clone()),
        ("scopes", identity.scopes.join(" ")),
        ("until", identity.expires.to_string()),
        ("server", client.server().to_string()),
        ("platform", platform.to_string()),
    ];
    let rows: Vec<_> = rows.map(|(key, value)| vec![key.to_owned(), value]).into();
    let document = json!({
        "identity": identity, "server": client.server().as_str(), "platform": platform,
    });
    tool.output.result(&output::table(&rows), &document)?;
    Ok(Exit::Fine)
}
