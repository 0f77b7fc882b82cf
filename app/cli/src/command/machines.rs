//! `machines list`: every machine that the person may see, one a line.

use serde_json::json;
use tabbify_api::machines::{MachineState, MachineView};

use crate::command::Tool;
use crate::error::{Exit, Result};
use crate::output;

pub(crate) fn list(tool: &Tool) -> Result<Exit> {
    let client = tool.client()?;
    let machines = client.machines()?;
    let mut rows = vec![
        ["NAME", "STATE", "SINCE", "RUNS", "FOR", "ADDRESS"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(machines.iter().map(row));
    let text = if machines.is_empty() {
        format!(
            "{} has no machines that you may see. Next: tabbify invite, on the platform's machine",
            client.server()
        )
    } else {
        output::table(&rows)
    };
    tool.output
        .result(&text, &json!({ "machines": machines }))?;
    Ok(Exit::Fine)
}

fn row(machine: &MachineView) -> Vec<String> {
    let works = machine.capabilities.iter().filter(|able| able.works);
    let runs: Vec<&str> = works.map(|able| able.runtime.as_str()).collect();
    let state = match machine.state {
        MachineState::Member => "member",
        MachineState::Ready => "ready",
        MachineState::Lost => "lost",
        MachineState::Draining => "draining",
        MachineState::Drained => "drained",
    };
    // What a machine says of itself is shown, and may be hostile.
    let runs = match runs.is_empty() {
        true => "-".to_owned(),
        false => output::printable(&runs.join(" ")),
    };
    let whose = match machine.tenant.as_str() {
        "system" => "all".to_owned(),
        tenant => tenant.to_owned(),
    };
    vec![
        machine.host.to_string(),
        state.to_owned(),
        machine.since.to_string(),
        runs,
        whose,
        machine.address.to_string(),
    ]
}
