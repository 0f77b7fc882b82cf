//! The catalog holds together: every type decodes what it writes, and refuses what it must.

use super::*;
use crate::{AppId, InstanceId, NewEvent, Segment, Tenant};

#[test]
fn written_is_read() {
    let event = Event::from(v1::TenantCreated {
        tenant: Tenant::main(),
    });
    let new = NewEvent::new(Segment::auth(), "main", &event).unwrap();
    assert_eq!((new.kind.as_str(), new.version), ("tenant_created", 1));
    let back = Event::decode(&new.kind, new.version, new.data.get()).unwrap();
    assert_eq!(back, Some(event));
}

#[test]
fn flattened_instance_reads_as_two_fields() {
    let of = v1::InstanceRef {
        app: AppId::mint(),
        instance: InstanceId(3),
    };
    let event = Event::from(v1::AppStopped { of });
    let data = event.data().unwrap();
    assert_eq!(
        data.get(),
        format!(r#"{{"app":"{}","instance":3}}"#, of.app)
    );
}

#[test]
fn unknown_type_is_skipped_and_unknown_version_stops() {
    assert_eq!(Event::decode("later_thing", 1, "{}").unwrap(), None);
    let newer = Event::decode("tenant_created", 2, "{}");
    assert!(matches!(newer, Err(EventError::Version { version: 2, .. })));
    let other = Event::decode("tenant_created", 1, r#"{"tenant":7}"#);
    assert!(matches!(other, Err(EventError::Data { .. })));
}

#[test]
fn kinds_are_past_tense_snake_case_and_distinct() {
    let mut seen = std::collections::BTreeSet::new();
    for kind in Event::KINDS {
        assert!(
            kind.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{kind}"
        );
        assert!(seen.insert(kind), "{kind} twice");
    }
}
