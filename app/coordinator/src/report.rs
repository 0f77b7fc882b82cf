//! Judges what a host says. A host is believed about the instances that were placed on it, one
//! step after the other, and about nothing else.

use std::time::Duration;

use tabbify_types::event::v1::{AppStarted, AppWoken, InstanceRef};
use tabbify_types::event::{Event, EventError};
use tabbify_types::{AppUla, HostName, InstanceUla, MeshKey, Position, Recorded, Timestamp};

use crate::app::{Cause, Instance, Phase, What};
use crate::state::State;

/// LIMIT: the text for people in a failure, in bytes.
const DETAIL_LEN_MAX: usize = 4 * 1024;
/// LIMIT: the last lines of output in a failure, in bytes.
const LOG_TAIL_LEN_MAX: usize = 8 * 1024;

/// An instance that was healthy for this long has shown that it can run: its end does not count
/// towards the limit of replacements in a row.
const LIVED_LONG: Duration = Duration::from_secs(10 * 60);

/// A report that changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("report {position} of {host} is not believed: {why}")]
pub struct Rejected {
    /// Its position.
    pub position: Position,
    /// Who wrote it.
    pub host: HostName,
    /// Why it cannot be true.
    pub why: String,
}

/// Takes a report into the state, as an open cause, or says why not. The state is then unchanged.
pub(crate) fn take(
    state: &mut State,
    host: &HostName,
    recorded: &Recorded,
    event: Result<Option<Event>, EventError>,
) -> Result<(), Rejected> {
    judge(state, host, recorded, event).map_err(|why| Rejected {
        position: recorded.position,
        host: host.clone(),
        why,
    })
}

fn judge(
    state: &mut State,
    host: &HostName,
    recorded: &Recorded,
    event: Result<Option<Event>, EventError>,
) -> Result<(), String> {
    let event = event.map_err(|error| error.to_string())?;
    let (of, phase, event) = match event {
        Some(Event::AppStarting(data)) => (data.of, Phase::Starting, Event::from(data)),
        Some(Event::AppStarted(data)) => (data.of, Phase::Started, Event::from(data)),
        Some(Event::AppHealthy(data)) => (data.of, Phase::Healthy, Event::from(data)),
        Some(Event::AppStopped(data)) => (data.of, Phase::Ended, Event::from(data)),
        Some(Event::AppFailed(mut data)) => {
            truncate(&mut data.detail, DETAIL_LEN_MAX);
            truncate_front(&mut data.log_tail, LOG_TAIL_LEN_MAX);
            (data.of, Phase::Ended, Event::from(data))
        }
        Some(Event::InstanceDrained(data)) => {
            return drained(state, host, recorded, data.of, data.into());
        }
        Some(Event::AppIdled(data)) => {
            return dozes(state, host, recorded, data.of, data.into());
        }
        Some(Event::AppWoken(data)) => return wakes(state, host, recorded, data),
        _ => return Err(format!("a host does not report {}", recorded.kind)),
    };
    let instance = placed_there(state, host, of)?;
    let forwards = instance.reported < phase
        && (phase != Phase::Healthy || instance.reported == Phase::Started);
    if !forwards {
        return Err(format!(
            "{} cannot follow {:?}",
            recorded.kind, instance.reported
        ));
    }
    let key = match &event {
        Event::AppStarted(data) => Some(check_started(state, data)?),
        _ => None,
    };
    state.keys.extend(key.map(|key| (key, of)));
    let Some(app) = state.apps.get_mut(&of.app) else {
        return Ok(());
    };
    let Some(instance) = app.instances.get_mut(&of.instance) else {
        return Ok(());
    };
    instance.reported = phase;
    instance.key = instance.key.or(key);
    if phase == Phase::Healthy {
        instance.healthy_at = Some(recorded.at);
    }
    if phase == Phase::Ended && has_lived_long(instance, recorded.at) {
        app.replaced.remove(&instance.slot);
    }
    open(state, recorded, of, event);
    Ok(())
}

/// Whether the instance has shown by then that it can run.
pub(crate) fn has_lived_long(instance: &Instance, at: Timestamp) -> bool {
    let healthy_at = instance.healthy_at;
    healthy_at.is_some_and(|healthy_at| healthy_at.plus(LIVED_LONG) <= at)
}

/// The instance, if this host is the one that it was placed on.
fn placed_there<'a>(
    state: &'a State,
    host: &HostName,
    of: InstanceRef,
) -> Result<&'a Instance, String> {
    let app = state.apps.get(&of.app).ok_or("there is no such app")?;
    let instance = app
        .instances
        .get(&of.instance)
        .filter(|instance| instance.host == *host);
    Ok(instance.ok_or("the instance does not run there")?)
}

/// The key of an instance that is new to everybody, on the addresses that are its own.
fn check_started(state: &State, data: &AppStarted) -> Result<MeshKey, String> {
    let right = data.app_ula == AppUla::derive(data.of.app)
        && data.instance_ula == InstanceUla::derive(data.of.app, data.of.instance);
    if !right {
        return Err("its addresses are not the instance's".to_owned());
    }
    if !state.may_have(&data.key, data.of) {
        return Err("its key belongs to another".to_owned());
    }
    let app = state.apps.get(&data.of.app);
    let lease = app.and_then(|app| app.leases.get(&data.of.instance));
    if lease.is_some_and(|lease| lease.key != data.key) {
        return Err("another key has its lease".to_owned());
    }
    Ok(data.key)
}

fn open(state: &mut State, recorded: &Recorded, of: InstanceRef, event: Event) {
    let what = What::Report {
        of,
        event: Box::new(event),
    };
    let id = recorded.id;
    state.ask(of.app, recorded.position, Cause { id, what });
}

/// Draining is no phase: it is said once, between the request to stop and the end.
fn drained(
    state: &mut State,
    host: &HostName,
    recorded: &Recorded,
    of: InstanceRef,
    event: Event,
) -> Result<(), String> {
    let instance = placed_there(state, host, of)?;
    if !instance.stop_requested || instance.drained || instance.reported == Phase::Ended {
        return Err("the instance was not to drain".to_owned());
    }
    let Some(app) = state.apps.get_mut(&of.app) else {
        return Ok(());
    };
    if let Some(instance) = app.instances.get_mut(&of.instance) {
        instance.drained = true;
    }
    open(state, recorded, of, event);
    Ok(())
}

/// An instance that serves has nothing to do.
fn dozes(
    state: &mut State,
    host: &HostName,
    recorded: &Recorded,
    of: InstanceRef,
    event: Event,
) -> Result<(), String> {
    let instance = placed_there(state, host, of)?;
    if instance.reported != Phase::Healthy || instance.dozing || instance.stop_requested {
        return Err("the instance was not to be idle".to_owned());
    }
    doze(state, of, true);
    open(state, recorded, of, event);
    Ok(())
}

/// An instance that was idle serves again: with the key that it had, or a new one.
fn wakes(
    state: &mut State,
    host: &HostName,
    recorded: &Recorded,
    data: AppWoken,
) -> Result<(), String> {
    let of = data.of;
    let instance = placed_there(state, host, of)?;
    if instance.reported != Phase::Healthy || !instance.dozing {
        return Err("the instance was not idle".to_owned());
    }
    if data.key.is_some_and(|key| !state.may_have(&key, of)) {
        return Err("its key belongs to another".to_owned());
    }
    state.keys.extend(data.key.map(|key| (key, of)));
    doze(state, of, false);
    open(state, recorded, of, data.into());
    Ok(())
}

fn doze(state: &mut State, of: InstanceRef, dozing: bool) {
    let app = state.apps.get_mut(&of.app);
    if let Some(instance) = app.and_then(|app| app.instances.get_mut(&of.instance)) {
        instance.dozing = dozing;
    }
}

/// Keeps the beginning of a text, in whole characters.
fn truncate(text: &mut String, len: usize) {
    text.truncate(text.floor_char_boundary(len));
}

/// Keeps the end of a text, in whole characters.
fn truncate_front(text: &mut String, len: usize) {
    let cut = text.len().saturating_sub(len);
    text.drain(..text.ceil_char_boundary(cut));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        let mut text = "é".repeat(10);
        truncate(&mut text, 5);
        assert_eq!(text, "éé");
        let mut text = "aé".repeat(10);
        truncate_front(&mut text, 4);
        assert_eq!(text, "aé");
        truncate_front(&mut text, 100);
        truncate(&mut text, 100);
        assert_eq!(text, "aé");
    }
}
