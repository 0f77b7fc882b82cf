//! The machines of the platform: members of the mesh, and whether they get work.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tabbify_api::machines::{MachineState, MachineView, tenant_of};
use tabbify_types::event::v1::{Capability, PeerJoined};
use tabbify_types::{Event, HostName, HostUla, Segment, Timestamp};

/// See the module. What was said of a machine that is no member any more is forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machines(BTreeMap<HostName, Machine>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Machine {
    joined: PeerJoined,
    at: Timestamp,
    state: MachineState,
    since: Timestamp,
    capabilities: Vec<Capability>,
}

impl Machines {
    /// Takes a claimed event of the platform's; one that stands in another segment than its own says
    /// nothing.
    pub(super) fn fold(&mut self, segment: &Segment, at: Timestamp, event: Event) {
        let (peers, supervisors) = (Segment::peers(), Segment::supervisors());
        match event {
            Event::PeerJoined(event) if *segment == peers => {
                let machine = Machine {
                    at,
                    state: MachineState::Member,
                    since: at,
                    capabilities: Vec::new(),
                    joined: event,
                };
                // Again with another key, it is still the machine that it was.
                let machine = match self.0.remove(&machine.joined.host) {
                    Some(before) => Machine {
                        joined: machine.joined,
                        ..before
                    },
                    None => machine,
                };
                self.0.insert(machine.joined.host.clone(), machine);
            }
            Event::PeerLeft(event) if *segment == peers => {
                self.0.remove(&event.host);
            }
            Event::SupervisorJoined(event) if *segment == supervisors => {
                if let Some(machine) = self.0.get_mut(&event.host) {
                    machine.capabilities = event.capabilities;
                }
                self.becomes(&event.host, MachineState::Ready, at);
            }
            Event::SupervisorLost(event) if *segment == supervisors => {
                self.becomes(&event.host, MachineState::Lost, at);
            }
            Event::SupervisorDrainRequested(event) if *segment == supervisors => {
                self.becomes(&event.host, MachineState::Draining, at);
            }
            Event::SupervisorDrained(event) if *segment == supervisors => {
                self.becomes(&event.host, MachineState::Drained, at);
            }
            _ => {}
        }
    }

    fn becomes(&mut self, host: &HostName, state: MachineState, at: Timestamp) {
        if let Some(machine) = self
            .0
            .get_mut(host)
            .filter(|machine| machine.state != state)
        {
            machine.state = state;
            machine.since = at;
        }
    }

    /// Where a machine is in the mesh, if it is a member.
    pub(crate) fn address(&self, host: &HostName) -> Option<HostUla> {
        self.0.get(host).map(|machine| machine.joined.address)
    }

    /// All of them, by name.
    pub(crate) fn views(&self) -> impl Iterator<Item = MachineView> {
        self.0.values().map(Machine::view)
    }
}

impl Machine {
    fn view(&self) -> MachineView {
        MachineView {
            host: self.joined.host.clone(),
            address: self.joined.address,
            tenant: tenant_of(&self.joined.tags),
            tags: self.joined.tags.clone(),
            state: self.state,
            since: self.since,
            joined: self.at,
            capabilities: self.capabilities.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tabbify_types::event::v1::{
        PeerLeft, SupervisorDrainRequested, SupervisorDrained, SupervisorJoined, SupervisorLost,
    };
    use tabbify_types::{HostUla, MeshKey};

    use super::*;

    fn joined(name: &str, key: u8, tags: &[&str]) -> Event {
        PeerJoined {
            host: name.parse().unwrap(),
            key: MeshKey([key; 32]),
            network: "main".to_owned(),
            index: 1,
            address: HostUla::new(1, 1),
            tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
        }
        .into()
    }

    #[test]
    fn a_machine_by_its_events() {
        let mut machines = Machines::default();
        let (peers, supervisors) = (Segment::peers(), Segment::supervisors());
        let host: HostName = "box2".parse().unwrap();
        let ready = Event::from(SupervisorJoined {
            host: host.clone(),
            capabilities: vec![Capability {
                runtime: "wasm-http".to_owned(),
                works: true,
                detail: String::new(),
            }],
            memory: None,
        });
        let lost = Event::from(SupervisorLost { host: host.clone() });
        let draining = Event::from(SupervisorDrainRequested {
            host: host.clone(),
            by: "user:owner".to_owned(),
        });
        let drained = Event::from(SupervisorDrained { host: host.clone() });
        let left = Event::from(PeerLeft { host });
        let mut at = 0;
        let mut check =
            |segment: &Segment, event: &Event, expected: Option<(MachineState, u64)>| {
                at += 10;
                machines.fold(segment, Timestamp::from_millis(at), event.clone());
                let views: Vec<MachineView> = machines.views().collect();
                let seen = views.first().map(|view| (view.state, view.since.millis()));
                assert_eq!(seen, expected, "{event:?}");
                views
            };
        // Nobody yet whom it could be about.
        check(&supervisors, &lost, None);
        check(&supervisors, &joined("box2", 1, &[]), None);
        check(
            &peers,
            &joined("box2", 1, &["tenant:main"]),
            Some((MachineState::Member, 30)),
        );
        let seen = check(&supervisors, &ready, Some((MachineState::Ready, 40)));
        assert_eq!(seen[0].capabilities.len(), 1);
        assert_eq!(seen[0].tenant.as_str(), "main");
        check(&peers, &lost, Some((MachineState::Ready, 40)));
        check(&supervisors, &lost, Some((MachineState::Lost, 60)));
        check(&supervisors, &lost, Some((MachineState::Lost, 60)));
        // A new key does not make it another machine.
        let seen = check(
            &peers,
            &joined("box2", 2, &[]),
            Some((MachineState::Lost, 60)),
        );
        assert_eq!(seen[0].tenant, tabbify_types::Tenant::system());
        check(&supervisors, &ready, Some((MachineState::Ready, 90)));
        check(&supervisors, &draining, Some((MachineState::Draining, 100)));
        check(&supervisors, &drained, Some((MachineState::Drained, 110)));
        check(&supervisors, &left, Some((MachineState::Drained, 110)));
        check(&peers, &left, None);
    }
}
