//! What a subscriber is told and when, whatever the engine: events in order, `CaughtUp` once, and
//! `Progress` where nothing matched. Pure; the engine says what it has looked at.

use std::collections::VecDeque;
use std::sync::Arc;

use tabbify_api::log::Delivery;
use tabbify_types::{Position, Recorded};

/// Skipped positions after which a subscriber is told, so that it can resume from there.
const PROGRESS_EVENTS: u64 = 1000;

/// The deliveries of one subscription.
#[derive(Debug)]
pub(crate) struct Marks {
    /// Everything up to here has been looked at.
    looked: Position,
    /// Everything up to here is known to the subscriber once `ready` is empty.
    told: Position,
    caught_up: bool,
    ready: VecDeque<Delivery>,
}

impl Marks {
    /// A subscription from after `after` on.
    pub(crate) const fn new(after: Position) -> Self {
        Self {
            looked: after,
            told: after,
            caught_up: false,
            ready: VecDeque::new(),
        }
    }

    pub(crate) const fn looked(&self) -> Position {
        self.looked
    }

    pub(crate) fn pop(&mut self) -> Option<Delivery> {
        self.ready.pop_front()
    }

    /// Everything up to `upto` has been looked at, and these events are wanted.
    pub(crate) fn absorb(&mut self, events: Vec<Arc<Recorded>>, upto: Position) {
        self.looked = upto;
        for event in events {
            self.told = event.position;
            self.ready.push_back(Delivery::Event(event));
        }
        if self.looked.get() - self.told.get() >= PROGRESS_EVENTS {
            self.tell(Delivery::Progress(self.looked));
        }
    }

    /// At the head: says so once, later only that skipped events are behind. Whether it said so.
    pub(crate) fn at_head(&mut self) -> bool {
        if !self.caught_up {
            self.caught_up = true;
            self.tell(Delivery::CaughtUp(self.looked));
            return true;
        }
        let skipped = self.looked > self.told;
        if skipped {
            self.tell(Delivery::Progress(self.looked));
        }
        skipped
    }

    fn tell(&mut self, delivery: Delivery) {
        self.told = self.looked;
        self.ready.push_back(delivery);
    }
}
