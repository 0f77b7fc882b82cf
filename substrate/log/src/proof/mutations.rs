//! Tests of the tests: a disk on which one sync does nothing. For each sync that the engine makes,
//! `enumeration` must find that something is lost.

use std::collections::BTreeMap;
use std::path::Path;

use super::Wrong;
use super::engine::Seal;
use super::enumeration::{Enumeration, groups, killed, rollover, small, stored, torn};
use super::workload::Setup;
use crate::disk::SyncPoint;

/// What is wrong when this sync does nothing, if anything is.
async fn violation(skip: SyncPoint) -> Option<Wrong> {
    let (seal, workloads) = match skip {
        SyncPoint::StoredRecord | SyncPoint::StoredName => (Seal::Always, vec![stored()]),
        _ => {
            let all = vec![small(), groups(), torn(), killed(), rollover()];
            (Seal::Never, all)
        }
    };
    for acts in workloads {
        let skip = Some(skip);
        let mut enumeration = Enumeration::of(Setup { skip, seal });
        if let Err(wrong) = enumeration.workload(&acts).await {
            return Some(wrong);
        }
    }
    None
}

#[tokio::test]
async fn without_any_one_sync_something_is_lost() {
    for point in SyncPoint::ALL {
        let wrong = violation(point).await;
        let wrong = wrong.unwrap_or_else(|| panic!("nothing is lost without {point:?}"));
        println!("without {point:?}: {wrong}");
    }
}

/// Every use of a sync in the engine, by its point.
fn uses() -> BTreeMap<String, usize> {
    let mut uses = BTreeMap::new();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("the sources are there") {
            let path = entry.expect("the sources are there").path();
            if path.is_dir() {
                // An import that does not come to its end is begun anew, on an empty directory.
                let others = ["src/disk", "src/proof", "src/transfer"];
                if !others.iter().any(|other| path.ends_with(other)) {
                    dirs.push(path);
                }
                continue;
            }
            if path.ends_with("tests.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("the sources are text");
            let around = ["sync_all(", "sync_data()", "fsync(", "fdatasync("];
            let around: Vec<_> = around.iter().filter(|call| text.contains(**call)).collect();
            assert!(
                around.is_empty() || !path.parent().is_some_and(|dir| dir.ends_with("src")),
                "{} goes around the disk: {around:?}",
                path.display()
            );
            for call in text.split("SyncPoint::").skip(1) {
                let name = call.split(|c: char| !c.is_alphanumeric()).next();
                *uses.entry(name.unwrap_or_default().to_owned()).or_default() += 1;
            }
        }
    }
    uses
}

#[test]
fn every_sync_of_the_engine_has_a_point_of_its_own() {
    let all = SyncPoint::ALL.map(|point| (format!("{point:?}"), 1));
    assert_eq!(uses(), BTreeMap::from(all));
    // The last one there is; a new one is added to ALL, and to the proof with it.
    assert_eq!(SyncPoint::ALL.len(), SyncPoint::ALL[7] as usize + 1);
}
