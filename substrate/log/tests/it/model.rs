//! Random commands against a log that is only a list.

use std::collections::HashMap;

use proptest::prelude::*;
use tabbify_api::log::{Append, AppendError, Appended, Delivery, Expect, Expectation, Filter};
use tabbify_types::{EventId, NewEvent, Position, Rev, Segment};
use uuid::Uuid;

use crate::support::{Wrong, event, next, open, read_all, segment};

const SEGMENTS: [&str; 3] = ["platform", "tenant_a.apps", "tenant_b.apps"];

#[derive(Debug, Clone)]
enum Command {
    /// Events as (id, segment, key, data length), expectations as (segment, key, revision).
    Append(Vec<(u8, u8, u8, u16)>, Vec<(u8, u8, u8)>),
    /// An earlier batch again.
    Repeat(prop::sample::Index),
    /// After this much of the head, in pages of this size, of one segment or all.
    Read(prop::sample::Index, u8, Option<u8>),
    Subscribe(prop::sample::Index),
    Reopen,
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    let events = prop::collection::vec((0..60_u8, 0..3_u8, 0..3_u8, 0..2000_u16), 1..5);
    let expect = prop::collection::vec((0..3_u8, 0..3_u8, 0..4_u8), 0..2);
    let one = prop_oneof![
        6 => (events, expect).prop_map(|(events, expect)| Command::Append(events, expect)),
        2 => any::<prop::sample::Index>().prop_map(Command::Repeat),
        2 => (any::<prop::sample::Index>(), 1..20_u8, prop::option::of(0..3_u8))
            .prop_map(|(after, page, segment)| Command::Read(after, page, segment)),
        1 => any::<prop::sample::Index>().prop_map(Command::Subscribe),
        1 => Just(Command::Reopen),
    ];
    prop::collection::vec(one, 1..50)
}

/// The law in its plainest form.
#[derive(Default)]
struct Model {
    events: Vec<(NewEvent, Rev)>,
    /// Each batch as its first index and its length.
    batches: Vec<(usize, usize)>,
}

impl Model {
    fn rev(&self, segment: &Segment, key: &str) -> Rev {
        let of_key = |(event, _): &&(NewEvent, Rev)| event.segment == *segment && event.key == key;
        Rev(self.events.iter().filter(of_key).count() as u64)
    }

    fn append(&mut self, batch: &Append) -> Result<Appended, AppendError> {
        let index = |id: EventId| self.events.iter().position(|(event, _)| event.id == id);
        let ids: std::collections::HashSet<_> = batch.events.iter().map(|event| event.id).collect();
        if ids.len() < batch.events.len() {
            return Err(AppendError::Invalid {
                detail: String::new(),
            });
        }
        let known: Vec<_> = batch.events.iter().map(|event| index(event.id)).collect();
        if let Some(first_known) = known.iter().position(Option::is_some) {
            let same = |(start, len): &(usize, usize)| {
                *len == batch.events.len()
                    && self.events[*start..start + len]
                        .iter()
                        .zip(&batch.events)
                        .all(|((a, _), b)| same(a, b))
            };
            return match self.batches.iter().find(|batch| same(batch)) {
                Some((start, len)) => Ok(self.answer(*start, *len)),
                None => Err(AppendError::IdConflict {
                    id: batch.events[first_known].id,
                }),
            };
        }
        for Expectation {
            segment,
            key,
            expect,
        } in &batch.expect
        {
            let actual = self.rev(segment, key);
            let expected = match expect {
                Expect::Rev(rev) => *rev,
                Expect::None => Rev(0),
            };
            let (segment, key) = (segment.clone(), key.clone());
            if expected < actual {
                return Err(AppendError::Conflict {
                    segment,
                    key,
                    actual,
                });
            }
            if expected > actual {
                return Err(AppendError::ExpectAhead {
                    segment,
                    key,
                    expected,
                    actual,
                });
            }
        }
        let (start, len) = (self.events.len(), batch.events.len());
        for event in &batch.events {
            let rev = self.rev(&event.segment, &event.key).next();
            self.events.push((event.clone(), rev));
        }
        self.batches.push((start, len));
        Ok(self.answer(start, len))
    }

    fn answer(&self, start: usize, len: usize) -> Appended {
        let revs = self.events[start..start + len]
            .iter()
            .map(|(_, rev)| *rev)
            .collect();
        Appended {
            first: Position(start as u64 + 1),
            last: Position((start + len) as u64),
            revs,
        }
    }
}

fn same(a: &NewEvent, b: &NewEvent) -> bool {
    (
        a.id,
        &a.segment,
        &a.key,
        &a.kind,
        a.version,
        a.cause,
        a.data.get(),
    ) == (
        b.id,
        &b.segment,
        &b.key,
        &b.kind,
        b.version,
        b.cause,
        b.data.get(),
    )
}

fn batch(events: &[(u8, u8, u8, u16)], expect: &[(u8, u8, u8)]) -> Append {
    let made = events.iter().map(|(id, segment, key, len)| {
        let data = format!("{{\"a\":\"{}\"}}", "x".repeat(usize::from(*len)));
        let id = EventId::from_uuid(Uuid::from_u128(u128::from(*id)));
        let event = event(SEGMENTS[usize::from(*segment)], &format!("k{key}"), &data);
        NewEvent { id, ..event }
    });
    let mut batch = Append::of(made.collect());
    for (name, key, rev) in expect {
        let expect = if *rev == 0 {
            Expect::None
        } else {
            Expect::Rev(Rev(u64::from(*rev)))
        };
        batch = batch.expecting(
            segment(SEGMENTS[usize::from(*name)]),
            format!("k{key}"),
            expect,
        );
    }
    batch
}

/// The same kind of answer; of a conflict of ids any id of the batch will do.
fn agree(ours: &Result<Appended, AppendError>, model: &Result<Appended, AppendError>) -> bool {
    match (ours, model) {
        (Err(AppendError::Invalid { .. }), Err(AppendError::Invalid { .. }))
        | (Err(AppendError::IdConflict { .. }), Err(AppendError::IdConflict { .. })) => true,
        _ => ours == model,
    }
}

async fn run(commands: Vec<Command>) -> Result<(), Wrong> {
    let dir = tempfile::tempdir()?;
    let (mut log, mut client) = open(dir.path(), 1 << 13)?;
    let (mut model, mut sent) = (Model::default(), Vec::<Append>::new());
    for command in commands {
        let head = model.events.len();
        match command {
            Command::Append(events, expect) => {
                let batch = batch(&events, &expect);
                sent.push(batch.clone());
                let (ours, expected) = (client.append(batch.clone()).await, model.append(&batch));
                assert!(agree(&ours, &expected), "{ours:?}, not {expected:?}");
            }
            Command::Repeat(which) if !sent.is_empty() => {
                let batch = which.get(&sent).clone();
                let (ours, expected) = (client.append(batch.clone()).await, model.append(&batch));
                assert!(agree(&ours, &expected), "{ours:?}, not {expected:?}");
            }
            Command::Repeat(_) => {}
            Command::Read(after, page, only) => {
                let only = only.map(|n| SEGMENTS[usize::from(n)]);
                let filter = Filter::segments(only.map(|name| (&segment(name)).into()));
                let mut after = Position(after.index(head + 1) as u64);
                let mut seen = Vec::new();
                let start = usize::try_from(after.get())?;
                while after < client.head() {
                    let page = client
                        .read(filter.clone(), after, usize::from(page))
                        .await?;
                    after = page.next_after;
                    seen.extend(page.events.iter().map(|event| event.id));
                }
                let wanted = model.events[start..].iter().map(|(event, _)| event);
                let wanted =
                    wanted.filter(|event| only.is_none_or(|n| event.segment.as_str() == n));
                assert!(seen.into_iter().eq(wanted.map(|event| event.id)));
            }
            Command::Subscribe(after) => {
                let after = after.index(head + 1);
                let mut subscription =
                    client.subscribe(Filter::default(), Position(after as u64))?;
                let mut seen = Vec::new();
                while let Delivery::Event(event) = next(&mut *subscription).await? {
                    seen.push(event.id);
                }
                assert!(
                    seen.into_iter()
                        .eq(model.events[after..].iter().map(|(event, _)| event.id))
                );
            }
            Command::Reopen => {
                log.close().await;
                (log, client) = open(dir.path(), 1 << 13)?;
            }
        }
        assert_eq!(client.head(), Position(model.events.len() as u64));
    }
    log.close().await;
    let (_log, client) = open(dir.path(), 1 << 13)?;
    let all = read_all(&*client, Filter::default(), 100).await?;
    let mut at = HashMap::new();
    for (recorded, (event, rev)) in all.iter().zip(&model.events) {
        assert_eq!((recorded.id, recorded.rev), (event.id, *rev));
        assert_eq!(recorded.data.get(), event.data.get());
        assert!(at.insert(recorded.position, ()).is_none());
    }
    assert_eq!(all.len(), model.events.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn the_log_is_a_list(commands in commands()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(commands)).unwrap();
    }
}
