//! docs/protocols/events.md is made from the catalog and the golden files; `UPDATE_EXPECT=1` writes
//! it anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use tabbify_types::event::{About, Field};
use tabbify_types::{Event, SegmentGlob};

use crate::golden;

const INTRODUCTION: &str = "\
# Events

Made from `foundation/types/src/event/v1.rs` and the golden files in `foundation/types/golden`, and checked by
`foundation/types/tests/it/page.rs`: `UPDATE_EXPECT=1 cargo test -p tabbify-types` writes it anew.

An event is a fact in the past tense, for ever. Its envelope (position, segment, key, revision, id, type, version,
time, actor, cause, trace) is in `foundation/types/src/envelope.rs`; this page is about its data.

- A released shape never changes. A changed event is a new version with an upcaster, `foundation/types/src/event/upcast.rs`;
  readers get the newest shape of whatever version was written.
- Unknown fields are ignored, so a later release may add optional ones. A type that is not listed is kept and skipped;
  an unknown version of a listed type stops the reader that needs it.
- Types named `x.<name>` are an app's own, of any shape; the platform does not read them.
- A segment with a `*` exists once for each tenant or host. An event with several places is copied: what a host must do
  stands under the host too, in the same batch, and what a host reports is recorded under the tenant once it has been checked.
- A `Sealed` field is personal: encrypted under a key of its subject, which `subject_erased` destroys.

";

fn said(text: &str) -> &str {
    text.trim_start()
}

/// A type as people write it, without the tokens' spaces.
fn shape(field: &Field) -> String {
    field.shape.replace(' ', "")
}

fn first_segment(about: &About) -> &'static str {
    // What belongs to a tenant is listed with the tenant, wherever else it stands.
    let homes = about.homes.iter().map(|home| home.segment);
    let own = homes
        .clone()
        .find(|segment| !segment.starts_with("platform.hosts."));
    own.unwrap_or_else(|| about.homes[0].segment)
}

fn anchor(about: &About) -> String {
    format!("[`{0}`](#{0})", about.kind)
}

fn row(page: &mut String, about: &About) {
    let own = first_segment(about);
    let mut writers = BTreeSet::new();
    let mut copies = Vec::new();
    for home in about.homes {
        if home.segment == own {
            writers.insert(home.writer);
        } else {
            copies.push(format!("`{}` by {}", home.segment, home.writer));
        }
    }
    let writers: Vec<&str> = writers.into_iter().collect();
    writeln!(
        page,
        "| {} | {} | {} | {} |",
        anchor(about),
        about.key,
        writers.join(", "),
        copies.join(", "),
    )
    .expect("a String takes everything");
}

fn details(page: &mut String, about: &About) {
    let line = "a String takes everything";
    writeln!(page, "\n### {}\n\n{}\n", about.kind, said(about.says)).expect(line);
    writeln!(page, "| field | type | says |\n|---|---|---|").expect(line);
    for field in about.fields {
        let (name, optional) = match field.serde {
            "flatten" => ("app`, `instance", ""),
            "" => (field.name, ""),
            _ => (field.name, " Optional."),
        };
        let (shape, says) = (shape(field), said(field.says));
        writeln!(page, "| `{name}` | `{shape}` | {says}{optional} |").expect(line);
    }
    writeln!(page, "\nVersion {}:\n\n```json", about.version).expect(line);
    let fields = golden::fields(&golden::read(about));
    for (i, (name, value)) in fields.iter().enumerate() {
        let start = if i == 0 { "{ " } else { "  " };
        let end = if i + 1 == fields.len() { " }" } else { "," };
        writeln!(page, "{start}\"{name}\": {value}{end}").expect(line);
    }
    writeln!(page, "```").expect(line);
}

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    let mut segments: Vec<&str> = Vec::new();
    for about in Event::CATALOG {
        let segment = first_segment(about);
        if !segments.contains(&segment) {
            segments.push(segment);
        }
    }
    let of = |segment: &'static str| {
        let own = move |about: &&&About| first_segment(about) == segment;
        Event::CATALOG.iter().filter(own)
    };
    for segment in segments.iter().copied() {
        let line = "a String takes everything";
        writeln!(page, "## `{segment}`\n").expect(line);
        writeln!(
            page,
            "| type | key | written by | also in |\n|---|---|---|---|"
        )
        .expect(line);
        of(segment).for_each(|about| row(&mut page, about));
        of(segment).for_each(|about| details(&mut page, about));
        page.push('\n');
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

#[test]
fn the_page_says_what_the_catalog_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocols/events.md");
    let page = page();
    if golden::update() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap();
    let differs = written.lines().zip(page.lines()).position(|(a, b)| a != b);
    assert!(
        written == page,
        "docs/protocols/events.md differs from the catalog, first in line {:?}: run the tests of \
         tabbify-types with UPDATE_EXPECT=1",
        differs.map(|line| line + 1)
    );
}

#[test]
fn every_home_is_a_segment_and_every_writer_a_role() {
    let roles = [
        "auth",
        "coordinator",
        "node",
        "supervisord",
        "api-gateway",
        "sandbox-supervisor",
    ];
    for about in Event::CATALOG {
        assert!(
            !about.homes.is_empty() && !about.key.is_empty(),
            "{}",
            about.kind
        );
        for home in about.homes {
            assert!(
                home.segment.parse::<SegmentGlob>().is_ok(),
                "{}",
                home.segment
            );
            assert!(
                roles.contains(&home.writer),
                "{}: {}",
                about.kind,
                home.writer
            );
        }
    }
}

#[test]
fn what_is_personal_is_sealed() {
    // DESIGN section 5: mail addresses and chat, from version 1 on.
    for (kind, name) in [
        ("user_invited", "email"),
        ("message_posted", "text"),
        ("telegram_message_received", "chat"),
        ("telegram_message_received", "sender"),
        ("telegram_message_received", "text"),
    ] {
        let about = Event::CATALOG
            .iter()
            .find(|about| about.kind == kind)
            .unwrap();
        let field = about
            .fields
            .iter()
            .find(|field| field.name == name)
            .unwrap();
        assert_eq!(field.shape, "Sealed", "{kind} {name}");
    }
    let telling = ["email", "mail", "phone", "address_line", "full_name"];
    for about in Event::CATALOG {
        for field in about.fields {
            let sealed = field.shape.contains("Sealed");
            assert!(
                sealed || !telling.contains(&field.name),
                "{} {}",
                about.kind,
                field.name
            );
        }
    }
}
