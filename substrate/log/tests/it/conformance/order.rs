//! Positions and revisions: gapless, in batch order, the answer the same as what is stored.

use tabbify_api::log::{Append, Filter};
use tabbify_types::{Position, Rev};

use super::Fixture;
use super::case::Case;
use super::limits::same;
use crate::support::{Outcome, event, read_all};

/// Lengths of batches, one after the other.
const BATCHES: &[&[usize]] = &[
    &[1],
    &[1, 1, 1, 1, 1, 1, 1, 1],
    &[2, 3, 5, 7],
    &[100, 1, 100],
    &[1024, 1],
];

const LIMITS: [usize; 5] = [0, 1, 2, 7, 8];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for lens in BATCHES {
        cases.push(Case::new(
            format!("order::batches of {lens:?}"),
            move |fixture| Box::pin(batches(fixture, lens)),
        ));
    }
    for limit in LIMITS {
        cases.push(Case::new(
            format!("order::pages of {limit}"),
            move |fixture| Box::pin(pages(fixture, limit)),
        ));
    }
    cases
}

async fn batches(fixture: &dyn Fixture, lens: &[usize]) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (served, client) = fixture.open(dir.path(), 1 << 15).await?;
    let keys = ["a", "b", "c"];
    let segments = ["tenant_main.apps", "tenant_main.chat"];
    let (mut given, mut revs) = (Vec::new(), std::collections::HashMap::new());
    for len in lens {
        let first = given.len() as u64 + 1;
        let events: Vec<_> = (0..*len)
            .map(|n| {
                let n = n + given.len();
                event(segments[n % 2], keys[n % 3], &format!("{{\"n\":{n}}}"))
            })
            .collect();
        let answer = client.append(Append::of(events.clone())).await?;
        assert_eq!(answer.first, Position(first));
        assert_eq!(answer.last, Position(first + *len as u64 - 1));
        let due: Vec<Rev> = events
            .iter()
            .map(|event| {
                let rev = revs
                    .entry((event.segment.clone(), event.key.clone()))
                    .or_insert(Rev(0));
                *rev = rev.next();
                *rev
            })
            .collect();
        assert_eq!(answer.revs, due);
        assert_eq!((client.head(), served.head()), (answer.last, answer.last));
        given.extend(events);
    }
    let kept = read_all(&*client, Filter::default(), 300).await?;
    assert_eq!(kept.len(), given.len());
    for (index, (given, kept)) in given.iter().zip(&kept).enumerate() {
        assert_eq!(kept.position, Position(index as u64 + 1));
        same(given, kept);
    }
    served.close().await;
    drop((served, client));
    let (head, commits) = fixture.verify(dir.path()).await?;
    assert_eq!(head, Position(given.len() as u64));
    assert_eq!(commits, lens.len() as u64);
    Ok(())
}

/// A page is never longer than asked, and says how far it has looked.
async fn pages(fixture: &dyn Fixture, limit: usize) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_served, client) = fixture.open(dir.path(), 1 << 15).await?;
    for _ in 0..7 {
        client
            .append(Append::of(vec![event("platform", "k", "{}")]))
            .await?;
    }
    for after in 0..=7_u64 {
        let page = client
            .read(Filter::default(), Position(after), limit)
            .await?;
        let due = (after + limit as u64).min(7);
        let seen = page.events.iter().map(|event| event.position.get());
        assert!(seen.eq(after + 1..=due), "after {after}: {:?}", page.events);
        assert_eq!((page.next_after, page.head), (Position(due), Position(7)));
    }
    Ok(())
}
