//! Readers of one life: subscriptions that are read a little now and then.

use std::time::Duration;

use tabbify_api::log::{Delivery, EventLog, Filter, ReadError, Subscribe};
use tabbify_types::{NewEvent, Position, SegmentGlob};

use super::Transcript;
use crate::proof::Wrong;
use crate::proof::engine::SEGMENTS;
use crate::proof::model::{Model, is};
use crate::proof::random::Random;

/// Longer than anything takes that is not waiting for an append, in a time that stands still
/// meanwhile.
const IDLE: Duration = Duration::from_millis(10);

/// What one reader wants.
pub(super) fn some_filter(random: &mut Random) -> Filter {
    let mut filter = Filter::default();
    match random.below(4) {
        0 => filter.key = Some("a".to_owned()),
        1 => filter.segments = globs("tenant_b.*"),
        2 => filter.segments = globs(SEGMENTS[0]),
        _ => {}
    }
    filter
}

fn globs(text: &str) -> Vec<SegmentGlob> {
    vec![text.parse().expect("a glob of a test")]
}

/// Whether an event is for a reader of `filter`.
pub(super) fn wants(filter: &Filter, event: &NewEvent) -> bool {
    filter.key.as_ref().is_none_or(|key| *key == event.key)
        && (filter.segments.is_empty()
            || filter
                .segments
                .iter()
                .any(|glob| glob.matches(&event.segment)))
}

/// One reader.
pub(super) struct Reader {
    filter: Filter,
    /// Everything up to here is known to it.
    told: Position,
    subscription: Option<Box<dyn Subscribe>>,
}

impl Reader {
    pub(super) fn new(random: &mut Random) -> Self {
        Self {
            filter: some_filter(random),
            told: Position(0),
            subscription: None,
        }
    }

    /// The log is gone; it comes back and goes on from where it was.
    pub(super) fn disconnect(&mut self) {
        self.subscription = None;
    }

    /// Takes up to `count` deliveries. `stopped`: the log has failed, and says so at its end.
    pub(super) async fn read(
        &mut self,
        client: &dyn EventLog,
        model: &Model,
        count: u64,
        stopped: bool,
        transcript: &mut Transcript,
    ) -> Result<(), Wrong> {
        for _ in 0..count {
            let subscription = match &mut self.subscription {
                Some(subscription) => subscription,
                None => self
                    .subscription
                    .insert(client.subscribe(self.filter.clone(), self.told)?),
            };
            let delivery = tokio::time::timeout(IDLE, subscription.next()).await;
            transcript.add(&("delivery", &delivery));
            match delivery {
                Err(_) if stopped => return Err("a stopped log lets readers wait".into()),
                Err(_) => return self.nothing_upto(model.head(), model),
                Ok(Err(ReadError::Stopping)) if stopped => {
                    self.disconnect();
                    return self.nothing_upto(model.head(), model);
                }
                Ok(Err(error)) => return Err(error.into()),
                Ok(Ok(delivery)) => self.told(&delivery, model)?,
            }
        }
        Ok(())
    }

    fn told(&mut self, delivery: &Delivery, model: &Model) -> Result<(), Wrong> {
        match delivery {
            Delivery::CaughtUp(position) | Delivery::Progress(position) => {
                self.nothing_upto(*position, model)?;
                self.told = *position;
            }
            Delivery::Event(event) => {
                let due = self.due(model);
                if !due.is_some_and(|(at, due)| at == event.position && is(event, due)) {
                    return Err(format!("read {event:?}, due was {due:?}").into());
                }
                self.told = event.position;
            }
        }
        Ok(())
    }

    /// The next event for this reader.
    fn due<'a>(&self, model: &'a Model) -> Option<(Position, &'a NewEvent)> {
        model
            .after(self.told)
            .find(|(_, event)| wants(&self.filter, event))
    }

    fn nothing_upto(&self, position: Position, model: &Model) -> Result<(), Wrong> {
        match self.due(model).filter(|(at, _)| *at <= position) {
            None if position <= model.head() => Ok(()),
            None => Err(format!("told of {position}, which is beyond the head").into()),
            Some((at, _)) => Err(format!("{at} is skipped at {position}").into()),
        }
    }
}

/// A page, which must be the next events of the model.
pub(super) async fn page(
    client: &dyn EventLog,
    model: &Model,
    random: &mut Random,
) -> Result<(), Wrong> {
    let filter = some_filter(random);
    let after = Position(random.below(model.head().get() + 1));
    let limit = 1 + random.index(20);
    let page = client.read(filter.clone(), after, limit).await?;
    let mut due = model
        .after(after)
        .filter(|(_, event)| wants(&filter, event));
    for event in &page.events {
        let due = due.next();
        if !due.is_some_and(|(at, due)| at == event.position && is(event, due)) {
            return Err(format!("page of {filter:?} after {after}: {event:?}, not {due:?}").into());
        }
    }
    match due.next() {
        Some((at, _)) if at <= page.next_after => Err(format!("page skips {at}").into()),
        _ if page.head != model.head() => Err(format!("head {}", page.head).into()),
        _ => Ok(()),
    }
}
