//! Expectations: every revision that a key may have, against every one that a writer may expect.

use tabbify_api::log::{Append, AppendError, Expect};
use tabbify_types::{Position, Rev};

use super::Fixture;
use super::case::Case;
use crate::support::{Outcome, event, segment};

const APPS: &str = "tenant_main.apps";
const BUILDS: &str = "tenant_main.builds";

const NONE: Expect = Expect::None;

fn rev(rev: u64) -> Expect {
    Expect::Rev(Rev(rev))
}

/// What must come of an expectation where the key is at `actual`.
fn due(expect: Expect, actual: u64) -> Result<(), AppendError> {
    let expected = match expect {
        Expect::None => 0,
        Expect::Rev(rev) => rev.get(),
    };
    let (segment, key) = (segment(APPS), "k".to_owned());
    let is = Rev(actual);
    match expected.cmp(&actual) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(AppendError::Conflict {
            segment,
            key,
            actual: is,
        }),
        std::cmp::Ordering::Greater => Err(AppendError::ExpectAhead {
            segment,
            key,
            expected: Rev(expected),
            actual: is,
        }),
    }
}

/// Several expectations, where `k` is at 2, `l` at 1, and `k` of the other segment at 1: which one
/// fails, if one does.
type Several = (
    &'static str,
    &'static [(&'static str, &'static str, u64)],
    Option<usize>,
);

const SEVERAL: &[Several] = &[
    ("two that hold", &[(APPS, "k", 2), (APPS, "l", 1)], None),
    (
        "one that holds and one that does not",
        &[(APPS, "k", 2), (APPS, "l", 0)],
        Some(1),
    ),
    (
        "one that does not and one that holds",
        &[(APPS, "k", 1), (APPS, "l", 1)],
        Some(0),
    ),
    (
        "two that do not: the first is told",
        &[(APPS, "l", 0), (APPS, "k", 0)],
        Some(0),
    ),
    ("the same twice", &[(APPS, "k", 2), (APPS, "k", 2)], None),
    (
        "two that contradict each other",
        &[(APPS, "k", 2), (APPS, "k", 1)],
        Some(1),
    ),
    (
        "the same key of another segment",
        &[(BUILDS, "k", 1), (APPS, "k", 2)],
        None,
    ),
    ("another segment's revision", &[(BUILDS, "k", 2)], Some(0)),
    ("a key that nobody has written", &[(BUILDS, "l", 0)], None),
    (
        "three of three",
        &[(APPS, "k", 2), (APPS, "l", 1), (BUILDS, "k", 1)],
        None,
    ),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for actual in [0, 1, 3] {
        for expect in [NONE, rev(0), rev(1), rev(2), rev(3), rev(4), rev(u64::MAX)] {
            let name = format!("expects::{expect:?} at {actual}");
            cases.push(Case::new(name, move |fixture| {
                Box::pin(one(fixture, expect, actual))
            }));
        }
    }
    for (name, expectations, fails) in SEVERAL {
        cases.push(Case::new(format!("expects::{name}"), move |fixture| {
            Box::pin(several(fixture, expectations, *fails))
        }));
    }
    cases.push(Case::new(
        "expects::the batch itself does not count",
        |fixture| Box::pin(before_the_batch(fixture)),
    ));
    cases
}

async fn one(fixture: &dyn Fixture, expect: Expect, actual: u64) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 16).await?;
    for _ in 0..actual {
        client
            .append(Append::of(vec![
                event(APPS, "k", "{}"),
                event(APPS, "other", "{}"),
            ]))
            .await?;
    }
    let head = served.head();
    // Of the key that is written, and of one that is not.
    for written in ["k", "elsewhere"] {
        let batch = Append::of(vec![event(APPS, written, "{}")]);
        let answer = client
            .append(batch.expecting(segment(APPS), "k", expect))
            .await;
        let due = due(expect, actual);
        assert_eq!(answer.as_ref().err(), due.as_ref().err(), "{written}");
        let Ok(answer) = answer else {
            assert_eq!(served.head(), head);
            continue;
        };
        assert_eq!(
            answer.revs,
            [Rev(if written == "k" { actual + 1 } else { 1 })]
        );
        // It held once; the key has moved on.
        return Ok(());
    }
    Ok(())
}

async fn several(
    fixture: &dyn Fixture,
    expectations: &[(&str, &str, u64)],
    fails: Option<usize>,
) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 16).await?;
    client
        .append(Append::of(vec![
            event(APPS, "k", "{}"),
            event(APPS, "l", "{}"),
            event(BUILDS, "k", "{}"),
            event(APPS, "k", "{}"),
        ]))
        .await?;
    let mut batch = Append::of(vec![event(APPS, "new", "{}"), event(BUILDS, "new", "{}")]);
    for (of, key, expected) in expectations {
        let expect = if *expected == 0 { NONE } else { rev(*expected) };
        batch = batch.expecting(segment(of), *key, expect);
    }
    let answer = client.append(batch).await;
    let Some(index) = fails else {
        let answer = answer?;
        assert_eq!(
            (answer.first, answer.revs),
            (Position(5), vec![Rev(1), Rev(1)])
        );
        return Ok(());
    };
    let (of, named, _) = expectations[index];
    match answer {
        Err(
            AppendError::Conflict {
                segment: at, key, ..
            }
            | AppendError::ExpectAhead {
                segment: at, key, ..
            },
        ) => assert_eq!((at, &*key), (segment(of), named)),
        other => return Err(format!("{other:?}").into()),
    }
    assert_eq!(served.head(), Position(4));
    Ok(())
}

/// An expectation is of the log before the batch, however often the batch writes the key.
async fn before_the_batch(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_served, client) = fixture.open(dir.path(), 1 << 16).await?;
    let thrice = || Append::of((0..3).map(|_| event(APPS, "k", "{}")).collect());
    let first = client
        .append(thrice().expecting(segment(APPS), "k", NONE))
        .await?;
    assert_eq!(first.revs, [Rev(1), Rev(2), Rev(3)]);
    let second = client
        .append(thrice().expecting(segment(APPS), "k", rev(3)))
        .await?;
    assert_eq!(second.revs, [Rev(4), Rev(5), Rev(6)]);
    Ok(())
}
