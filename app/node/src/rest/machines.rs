//! Machines: who is a member of the mesh, and whether it gets work.

use http::StatusCode;
use tabbify_api::auth::{OWNER_SUBJECT, scope};
use tabbify_api::machines::{MachineList, MachineView};

use super::Call;
use crate::answer::{self, Answer};
use crate::error::Refusal;

/// `GET /v1/machines`: all of them for the platform's owner; for others those of their tenant alone.
pub(crate) fn list(call: Call<'_>) -> Result<Answer, Refusal> {
    let known = call.caller(scope::MACHINES_WRITE)?;
    let shown =
        |machine: &MachineView| known.subject == OWNER_SUBJECT || machine.tenant == known.tenant;
    let machines = call.node.projection.read(|view| {
        let machines = view.machines.views();
        machines.filter(shown).collect()
    });
    Ok(answer::json(StatusCode::OK, &MachineList { machines }))
}
