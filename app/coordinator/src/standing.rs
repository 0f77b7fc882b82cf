//! What a machine counts as: lost, back, to be emptied, empty. Pure; says nothing if it is so already.

use tabbify_api::log::Append;
use tabbify_types::event::v1::{SupervisorDrainRequested, SupervisorDrained, SupervisorLost};
use tabbify_types::{HostName, Segment};

use crate::join::{Draft, JoinError};
use crate::state::State;

/// Nothing was heard of the machine for too long.
///
/// # Errors
/// [`JoinError::Event`].
pub fn lost(state: &State, host: &HostName) -> Result<Option<Append>, JoinError> {
    let mut batch = Draft::new(state);
    if state.supervisors.contains_key(host) && !state.is_lost(host) {
        let lost = SupervisorLost { host: host.clone() };
        batch.put(&Segment::supervisors(), host.as_str(), &lost.into())?;
    }
    Ok(batch.finish())
}

/// The machine is heard of again.
///
/// # Errors
/// [`JoinError::Event`].
pub fn back(state: &State, host: &HostName) -> Result<Option<Append>, JoinError> {
    let mut batch = Draft::new(state);
    if let Some(machine) = state.supervisors.get(host)
        && state.is_lost(host)
    {
        batch.put_supervisor(host, machine)?;
    }
    Ok(batch.finish())
}

/// The machine is to be empty, says `by`.
///
/// # Errors
/// [`JoinError::Event`].
pub fn drain(state: &State, host: &HostName, by: &str) -> Result<Option<Append>, JoinError> {
    let mut batch = Draft::new(state);
    if state.supervisors.contains_key(host) && state.drain_of(host).is_none() {
        let requested = SupervisorDrainRequested {
            host: host.clone(),
            by: by.to_owned(),
        };
        batch.put(&Segment::supervisors(), host.as_str(), &requested.into())?;
    }
    Ok(batch.finish())
}

/// The machine is empty.
///
/// # Errors
/// [`JoinError::Event`].
pub fn drained(state: &State, host: &HostName) -> Result<Option<Append>, JoinError> {
    let mut batch = Draft::new(state);
    let drain = state.drain_of(host).filter(|drain| !drain.done);
    if drain.is_some() && state.load(host) == 0 {
        let drained = SupervisorDrained { host: host.clone() };
        batch.put(&Segment::supervisors(), host.as_str(), &drained.into())?;
    }
    Ok(batch.finish())
}

/// The machine may run apps again.
///
/// # Errors
/// [`JoinError::Event`].
pub fn resume(state: &State, host: &HostName) -> Result<Option<Append>, JoinError> {
    let mut batch = Draft::new(state);
    if let Some(machine) = state.supervisors.get(host)
        && state.drain_of(host).is_some()
    {
        let joined = machine.joined(host);
        let segment = Segment::supervisors();
        batch.put(&segment, host.as_str(), &joined.into())?;
        if state.is_lost(host) {
            // That it may run apps again does not bring it back.
            let lost = SupervisorLost { host: host.clone() };
            batch.put(&segment, host.as_str(), &lost.into())?;
        }
    }
    Ok(batch.finish())
}
