//! `token`: a bearer token on standard output, for programs that speak to the platform themselves.

use serde_json::json;

use crate::command::Tool;
use crate::error::{Exit, Result};

pub(crate) fn run(tool: &Tool) -> Result<Exit> {
    let token = tool.client()?.token()?;
    tool.output.result(&token, &json!({ "token": token }))?;
    Ok(Exit::Fine)
}
