//! Which segments there are, and which versions of a type: what the catalog says, and what is an
//! app's own.
//!
//! | segment | takes |
//! |---|---|
//! | of the platform and in the catalog | every type but known ones of unknown version |
//! | `tenant_<slug>.` and an area of the catalog | the same |
//! | `tenant_<slug>.` and anything else | an app's own types, `x.<name>` |
//! | any other | nothing |
//!
//! A type that is not in the catalog passes: readers keep and skip it. A known type in a version
//! that is newer than this catalog does not: whoever folds it would have to stop.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use tabbify_api::log::AppendError;
use tabbify_types::{Event, NewEvent, Segment, SegmentGlob};

struct Known {
    /// The platform's own segments without a wildcard, and those with one.
    platform: HashSet<&'static str>,
    globs: Vec<SegmentGlob>,
    /// What stands behind `tenant_<slug>.`
    areas: HashSet<&'static str>,
    /// The newest version of every type.
    newest: HashMap<&'static str, u16>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let mut known = Known {
        platform: HashSet::new(),
        globs: Vec::new(),
        areas: HashSet::new(),
        newest: HashMap::new(),
    };
    for about in Event::CATALOG {
        known.newest.insert(about.kind, about.version);
        for home in about.homes {
            let segment = home.segment;
            if let Some(area) = segment.strip_prefix("tenant_*.") {
                known.areas.insert(area);
            } else if !segment.contains('*') {
                known.platform.insert(segment);
            } else if !known.globs.iter().any(|glob| glob.as_str() == segment) {
                let glob = segment.parse();
                let glob = glob.expect("INVARIANT: the catalog's homes are globs");
                known.globs.push(glob);
            }
        }
    }
    known
});

/// Whether there is such a segment for such a type, and such a version of it.
pub(super) fn check(event: &NewEvent) -> Result<(), AppendError> {
    if !takes(&event.segment, &event.kind) {
        let segment = event.segment.clone();
        return Err(AppendError::UnknownSegment { segment });
    }
    match KNOWN.newest.get(&*event.kind) {
        Some(newest) if event.version > *newest => Err(AppendError::UnknownVersion {
            kind: event.kind.clone(),
            version: event.version,
            newest: *newest,
        }),
        _ => Ok(()),
    }
}

fn takes(segment: &Segment, kind: &str) -> bool {
    let name = segment.as_str();
    if KNOWN.platform.contains(name) {
        return true;
    }
    match name.split_once('.') {
        Some((tenant, area)) if tenant.starts_with("tenant_") => {
            (KNOWN.areas.contains(area) || kind.starts_with("x.")) && segment.tenant().is_some()
        }
        _ => KNOWN.globs.iter().any(|glob| glob.matches(segment)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_the_catalog_and_of_apps() {
        let check = |segment: &str, kind: &str, expected: bool| {
            let segment = segment.parse().unwrap();
            assert_eq!(takes(&segment, kind), expected, "{segment} {kind}");
        };
        for home in Event::CATALOG.iter().flat_map(|about| about.homes) {
            let literal = home.segment.replace('*', "main");
            check(&literal, "thing_happened", true);
        }
        for area in "apps builds secrets sandboxes chat approvals webhooks".split(' ') {
            check(&format!("tenant_a-1.{area}"), "thing_happened", true);
        }
        check("platform.hosts.box1.reports", "x.own", true);
        check("tenant_main.orders", "x.order_placed", true);
        check("tenant_main.orders.eu", "x.order_placed", true);
        check("tenant_main.orders", "order_placed", false);
        for nowhere in [
            "apps",
            "platfrom",
            "platform.orders",
            "platform.hosts",
            "platform.hosts.box1.other",
            "tenant_main",
            "tenant_.apps",
            "tenant_-a.apps",
            "tenant_a_b.apps",
        ] {
            check(nowhere, "x.own", false);
            check(nowhere, "thing_happened", false);
        }
    }

    #[test]
    fn every_version_up_to_the_newest_is_known() {
        for about in Event::CATALOG {
            assert_eq!(KNOWN.newest.get(about.kind), Some(&about.version));
        }
    }
}
