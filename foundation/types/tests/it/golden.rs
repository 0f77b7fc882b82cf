//! One golden file for each type and version: the data of an example with every field, byte for
//! byte as it stands in the log. A file that is there never changes: logs of its release are full
//! of its shape.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned};
use serde_json::value::RawValue;
use tabbify_types::event::About;
use tabbify_types::event::v1::{
    Access, BuildStage, DeployOutcome, FailureReason, Fault, ImagePort, IntegrationKind,
    RuntimeKind, SandboxEnd, SecretDelivery, Source, Stream, UnavailableReason,
};
use tabbify_types::{Digest, Event};

use crate::examples;

pub(crate) const WHAT_TO_DO: &str = "An event that was released never changes. Leave its shape and its \
    golden file, write a new version with an upcaster (src/event/upcast.rs), and an ADR that says why.";

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn name(about: &About) -> String {
    format!("{}.v{}.json", about.kind, about.version)
}

/// Whether files that a test compares with are to be written (`UPDATE_EXPECT=1`).
#[expect(
    clippy::disallowed_methods,
    reason = "the switch that every snapshot test of the workspace has"
)]
pub(crate) fn update() -> bool {
    std::env::var_os("UPDATE_EXPECT").is_some()
}

/// The golden file of a type, without its line feed.
pub(crate) fn read(about: &About) -> String {
    let path = dir().join(name(about));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}. For a new event: UPDATE_EXPECT=1 writes it",
            path.display()
        )
    });
    text.trim_end().to_owned()
}

/// The fields of a JSON object in the order that they stand in.
pub(crate) fn fields(data: &str) -> Vec<(String, String)> {
    struct InOrder(Vec<(String, String)>);

    impl<'de> Deserialize<'de> for InOrder {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = InOrder;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(
                    self,
                    mut map: A,
                ) -> Result<InOrder, A::Error> {
                    let mut found = Vec::new();
                    while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                        found.push((key, value.get().to_owned()));
                    }
                    Ok(InOrder(found))
                }
            }
            deserializer.deserialize_map(Visitor)
        }
    }

    let InOrder(found) = serde_json::from_str(data).expect("events are JSON objects");
    found
}

#[test]
fn every_event_is_what_it_was() {
    for event in examples::all() {
        let about = event.about();
        let data = event.data().unwrap();
        let path = dir().join(name(about));
        if update() && !path.exists() {
            fs::create_dir_all(dir()).unwrap();
            fs::write(&path, format!("{}\n", data.get())).unwrap();
        }
        assert_eq!(
            read(about),
            data.get(),
            "{} is written differently (right) from its golden file (left). {WHAT_TO_DO}",
            about.kind
        );
        let back = Event::decode(about.kind, about.version, &read(about)).unwrap();
        assert_eq!(back, Some(event), "{} reads differently", about.kind);
    }
}

#[test]
fn every_type_has_one_example_and_every_golden_file_a_type() {
    let kinds: Vec<&str> = examples::all().iter().map(Event::kind).collect();
    assert_eq!(kinds, Event::KINDS, "examples (left), catalog (right)");

    let newest: BTreeMap<&str, u16> = Event::CATALOG
        .iter()
        .map(|it| (it.kind, it.version))
        .collect();
    let mut found: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    for entry in fs::read_dir(dir()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let (kind, version) = file
            .strip_suffix(".json")
            .and_then(|stem| stem.rsplit_once(".v"))
            .unwrap_or_else(|| panic!("{file} is not named <type>.v<version>.json"));
        assert!(
            newest.contains_key(kind),
            "{file} has no type in the catalog"
        );
        found
            .entry(kind.to_owned())
            .or_default()
            .insert(version.parse().unwrap());
        // Golden files of earlier versions must be read for ever, as the newest shape.
        let data = fs::read_to_string(dir().join(&file)).unwrap();
        let event = Event::decode(kind, version.parse().unwrap(), &data).unwrap();
        assert_eq!(event.map(|event| event.kind()), Some(kind), "{file}");
    }
    for (kind, newest) in newest {
        let versions: BTreeSet<u16> = (1..=newest).collect();
        assert_eq!(
            found.get(kind),
            Some(&versions),
            "golden files of {kind}. {WHAT_TO_DO}"
        );
    }
}

#[test]
fn every_example_shows_every_field() {
    for event in examples::all() {
        let about = event.about();
        let data = event.data().unwrap();
        let shown: BTreeSet<String> = fields(data.get())
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let flat = about.fields.iter().filter(|field| field.serde == "flatten");
        let own = about.fields.iter().filter(|field| field.serde != "flatten");
        let missing: Vec<&str> = own
            .clone()
            .map(|field| field.name)
            .filter(|name| !shown.contains(*name))
            .collect();
        assert!(missing.is_empty(), "{}: no {missing:?}", about.kind);
        // A flattened field is the two of InstanceRef; there is no other.
        assert_eq!(
            shown.len(),
            own.count() + 2 * flat.count(),
            "{}",
            about.kind
        );
    }
}

#[test]
fn a_cut_or_emptied_event_is_refused() {
    for about in Event::CATALOG {
        let data = read(about);
        for end in (0..data.len()).filter(|end| data.is_char_boundary(*end)) {
            let cut = Event::decode(about.kind, about.version, &data[..end]);
            assert!(cut.is_err(), "{} cut at {end}", about.kind);
        }
        assert!(
            Event::decode(about.kind, about.version, "{}").is_err(),
            "{}",
            about.kind
        );
        assert!(Event::decode(about.kind, about.version + 1, &data).is_err());
    }
}

#[test]
fn a_later_release_may_add_optional_fields() {
    for event in examples::all() {
        let about = event.about();
        let more = read(about).replacen('{', r#"{"added_later":[1,{"x":null}],"#, 1);
        let back = Event::decode(about.kind, about.version, &more).unwrap();
        assert_eq!(back, Some(event));
    }
}

/// Fields that came later stay away where a log was written before them.
#[test]
fn an_event_from_before_its_optional_fields_is_read() {
    let before = r#"{"jti":"0191e7c4-0000-7000-8000-000000000001","kind":"join","subject":"host:box2","expires":"2026-11-22T15:00:00.000Z"}"#;
    let Ok(Some(Event::TokenIssued(issued))) = Event::decode("token_issued", 1, before) else {
        panic!("it is not read");
    };
    assert_eq!((issued.tenant.as_ref(), issued.by.as_ref()), (None, None));
    assert!(issued.scopes.is_empty() && issued.tags.is_empty());
    assert_eq!(Event::from(issued).data().unwrap().get(), before);
}

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(cases: &[(T, &str)]) {
    for (case, spelled) in cases {
        assert_eq!(
            serde_json::to_string(case).expect("plain data"),
            *spelled,
            "{WHAT_TO_DO}"
        );
        assert_eq!(
            serde_json::from_str::<T>(spelled).expect("what was written"),
            *case
        );
    }
    assert!(serde_json::from_str::<T>(r#""another""#).is_err());
}

#[test]
fn every_case_is_spelled_as_it_was() {
    check(&[
        (Access::Private, r#""private""#),
        (Access::Public, r#""public""#),
    ]);
    check(&[
        (FailureReason::Artifact, r#""artifact""#),
        (FailureReason::NotAComponent, r#""not_a_component""#),
        (FailureReason::WrongWorld, r#""wrong_world""#),
        (FailureReason::Unhealthy, r#""unhealthy""#),
        (FailureReason::Exited, r#""exited""#),
        (FailureReason::Spawn, r#""spawn""#),
        (FailureReason::Image, r#""image""#),
        (FailureReason::Runtime, r#""runtime""#),
        (FailureReason::Secret, r#""secret""#),
        (FailureReason::Volume, r#""volume""#),
        (FailureReason::Memory, r#""memory""#),
    ]);
}

#[test]
fn every_case_of_a_run_is_spelled_as_it_was() {
    check(&[
        (RuntimeKind::WasmHttp, r#""wasm-http""#),
        (RuntimeKind::Docker, r#""docker""#),
        (RuntimeKind::Firecracker, r#""firecracker""#),
    ]);
    check(&[
        (ImagePort::Number(3000), r#"{"number":3000}"#),
        (ImagePort::OfImage, r#""of_image""#),
        (ImagePort::None, r#""none""#),
    ]);
    check(&[
        (SecretDelivery::Env, r#""env""#),
        (SecretDelivery::File, r#""file""#),
    ]);
}

#[test]
fn every_case_of_an_end_is_spelled_as_it_was() {
    check(&[
        (UnavailableReason::NoMachine, r#""no_machine""#),
        (UnavailableReason::VolumeLost, r#""volume_lost""#),
        (UnavailableReason::Parked, r#""parked""#),
    ]);
    check(&[
        (DeployOutcome::Succeeded, r#""succeeded""#),
        (DeployOutcome::Failed, r#""failed""#),
    ]);
    check(&[
        (BuildStage::Fetch, r#""fetch""#),
        (BuildStage::Detect, r#""detect""#),
        (BuildStage::Build, r#""build""#),
        (BuildStage::Store, r#""store""#),
    ]);
    check(&[
        (Fault::User, r#""user""#),
        (Fault::Platform, r#""platform""#),
    ]);
    check(&[
        (SandboxEnd::Exited, r#""exited""#),
        (SandboxEnd::TimedOut, r#""timed_out""#),
        (SandboxEnd::OutOfMemory, r#""out_of_memory""#),
        (SandboxEnd::Cancelled, r#""cancelled""#),
        (SandboxEnd::NotStarted, r#""not_started""#),
    ]);
    check(&[
        (Stream::Stdout, r#""stdout""#),
        (Stream::Stderr, r#""stderr""#),
    ]);
    check(&[
        (IntegrationKind::Webhook, r#""webhook""#),
        (IntegrationKind::Telegram, r#""telegram""#),
        (IntegrationKind::Github, r#""github""#),
    ]);
    let archive = Digest::of(b"");
    let spelled = format!(r#"{{"from":"upload","archive":"{archive}"}}"#);
    check(&[(Source::Upload { archive }, spelled.as_str())]);
}
