//! `deploy`: puts a published version into service; also the last part of `push`.

use serde::Serialize;
use serde_json::json;
use tabbify_api::apps::{AppView, Operation, OperationStatus};
use tabbify_types::VersionNumber;
use tabbify_types::event::v1::Access;

use crate::args::{DeployArgs, RestartArgs};
use crate::client::Client;
use crate::command::Tool;
use crate::error::{Code, Exit, Failure, Result};
use crate::watch;

pub(crate) fn run(tool: &Tool, args: &DeployArgs) -> Result<Exit> {
    let (named, version) = match args.what.as_slice() {
        [version] => (None, version),
        [app, version] => (Some(app.as_str()), version),
        _ => unreachable!("clap takes one or two"),
    };
    let version = parse_version(version)?;
    let client = tool.client()?;
    let app = tool.app(&client, named)?;
    activate(tool, &client, &app, version)
}

/// `restart`: the version that serves, or the newest one where none does, in a new instance.
pub(crate) fn again(tool: &Tool, args: &RestartArgs) -> Result<Exit> {
    let client = tool.client()?;
    let app = tool.app(&client, args.name.as_deref())?;
    let Some(version) = app.serving.or(app.latest) else {
        let what = format!("{} has no version yet.", app.name);
        return Err(Failure::new(Code::NotDeployed, what).fix("Run: tcli push"));
    };
    activate(tool, &client, &app, version)
}

/// `push` and `deploy` answer alike.
#[derive(Serialize)]
struct Document<'a> {
    app: &'a AppView,
    version: VersionNumber,
    /// `None` after `push --no-deploy`.
    operation: Option<&'a Operation>,
}

/// Deploys, waits, and says where the app answers.
pub(crate) fn activate(
    tool: &Tool,
    client: &Client,
    app: &AppView,
    version: VersionNumber,
) -> Result<Exit> {
    let operation = watch::deploy(client, tool.progress, app, version)?;
    // Asked again: a new version may have another access than the one before.
    let now = client.app(app.id)?;
    let document = Document {
        app: &now,
        version,
        operation: Some(&operation),
    };
    if operation.status == OperationStatus::AwaitingApproval {
        let text = format!(
            "{} v{version} awaits approval; it deploys when a person says yes",
            now.name
        );
        tool.output.result(&text, &document)?;
        return Ok(Exit::Approval);
    }
    let change = match app.serving {
        Some(before) if before != version => format!("v{before} → v{version}"),
        _ => format!("v{version}"),
    };
    let url = operation.url.as_deref().unwrap_or(&now.url);
    let access = match now.access {
        Access::Private => "private: `tcli open` signs you in",
        Access::Public => "public",
    };
    tool.output.result(
        &format!("{} {change}  {url}  {access}", now.name),
        &document,
    )?;
    Ok(Exit::Fine)
}

/// Says that a version is there and nothing else changed.
pub(crate) fn published(tool: &Tool, app: &AppView, version: VersionNumber) -> Result<Exit> {
    let serves = match app.serving {
        Some(serving) => format!("v{serving} goes on serving"),
        None => "nothing serves yet".to_owned(),
    };
    let text = format!(
        "{} v{version} is published, {serves}: tcli deploy v{version}",
        app.name
    );
    tool.output.result(
        &text,
        &json!(Document {
            app,
            version,
            operation: None
        }),
    )?;
    Ok(Exit::Fine)
}

fn parse_version(text: &str) -> Result<VersionNumber> {
    let number = text.strip_prefix('v').unwrap_or(text);
    let digits = number.bytes().all(|b| b.is_ascii_digit());
    match number.parse::<VersionNumber>() {
        Ok(version) if digits && version.get() > 0 => Ok(version),
        _ => {
            let what = format!("{text:?} is not a version.");
            Err(Failure::new(Code::Usage, what).fix("Write it like: tcli deploy v2"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let check = |text: &str, expected: Option<u32>| {
            let got = parse_version(text).ok().map(VersionNumber::get);
            assert_eq!(got, expected, "{text}");
        };
        check("v2", Some(2));
        check("17", Some(17));
        for bad in [
            "",
            "v",
            "v0",
            "0",
            "vv1",
            "+1",
            "v-1",
            "1.2",
            "v4294967296",
            "latest",
        ] {
            check(bad, None);
        }
    }
}
