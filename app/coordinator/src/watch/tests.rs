//! Watches, one by one: who hears what, in which order, and what happens to the slow.

use futures_util::FutureExt as _;
use tabbify_types::HostUla;

use super::*;

fn key(byte: u8) -> MeshKey {
    MeshKey([byte; 32])
}

fn changed(app: AppId) -> Change {
    Change::App { app, gone: None }
}

/// What waits for the watch now.
fn waiting(watch: &Watch) -> Vec<Told> {
    std::iter::from_fn(|| watch.next().now_or_never().flatten()).collect()
}

fn changes(watch: &Watch) -> Vec<Change> {
    waiting(watch).into_iter().map(|told| told.change).collect()
}

#[test]
fn each_hears_what_it_has_asked_for() {
    let watchers = Watchers::default();
    let (shop, blog) = (AppId::mint(), AppId::mint());
    let mine = watchers.open(key(1), false, None);
    let other = watchers.open(key(2), false, Some(Position(0)));
    let edge = watchers.open(key(3), true, None);
    for watch in [&mine, &other, &edge] {
        assert_eq!(
            changes(watch),
            [Change::Reset],
            "a watch begins with nothing known"
        );
    }
    watchers.asked(&key(1), Topic::App(shop));
    watchers.asked(&key(9), Topic::App(shop));
    assert_eq!(watchers.publish(Position(1), changed(shop)), 2);
    assert_eq!(watchers.publish(Position(2), changed(blog)), 1);
    assert_eq!(changes(&mine), [changed(shop)]);
    assert_eq!(changes(&other), []);
    assert_eq!(changes(&edge), [changed(shop), changed(blog)]);

    let host: HostName = "box1".parse().unwrap();
    watchers.asked(&key(2), Topic::Host(host.clone()));
    let moved = Change::Host {
        host,
        address: HostUla::new(1, 1),
        gone: Some(key(7)),
    };
    assert_eq!(watchers.publish(Position(3), moved.clone()), 2);
    assert_eq!(changes(&other), [moved]);
    let tenant = tabbify_types::Tenant::main();
    let policy = Change::Policy { tenant };
    assert_eq!(
        watchers.publish(Position(4), policy.clone()),
        3,
        "everybody"
    );
    assert_eq!(changes(&mine), [policy]);
    assert_eq!(mine.alive().position, Position(4));
    assert_eq!(watchers.delivered(), 8);
}

#[test]
fn a_slow_watch_begins_again_and_takes_no_more_room() {
    let watchers = Watchers::default();
    let app = AppId::mint();
    let slow = watchers.open(key(1), true, None);
    for position in 1..=5_000 {
        watchers.publish(Position(position), changed(app));
    }
    let told = waiting(&slow);
    assert!(told.len() <= QUEUE_MAX, "{}", told.len());
    assert_eq!(told[0].change, Change::Reset);
    let positions: Vec<u64> = told.iter().map(|told| told.position.get()).collect();
    assert!(positions.is_sorted());
    assert_eq!(positions.last(), Some(&5_000));
}

#[test]
fn an_edge_that_comes_back_hears_what_it_missed() {
    let watchers = Watchers::default();
    watchers.begin_at(Position(10));
    let app = AppId::mint();
    for position in [11, 12, 13] {
        watchers.publish(Position(position), changed(app));
    }
    let from = |after: u64, everything| {
        let watch = watchers.open(key(1), everything, Some(Position(after)));
        let told = waiting(&watch);
        told.into_iter()
            .map(|told| (told.position.get(), told.change == Change::Reset))
            .collect::<Vec<_>>()
    };
    assert_eq!(from(11, true), [(12, false), (13, false)]);
    assert_eq!(from(13, true), []);
    assert_eq!(from(10, true), [(11, false), (12, false), (13, false)]);
    assert_eq!(from(9, true), [(13, true)], "before our time");
    assert_eq!(from(14, true), [(13, true)], "it knows another future");
    assert_eq!(
        from(11, false),
        [(13, true)],
        "what it had asked for is forgotten"
    );
    for position in 14..14 + RECENT_MAX as u64 {
        watchers.publish(Position(position), changed(app));
    }
    assert_eq!(from(12, true).len(), 1, "too long ago");
}

#[test]
fn one_key_has_room_for_so_much() {
    let watchers = Watchers::default();
    // What is part of this process stays, however often the key comes from elsewhere.
    let own = [1, 2, 3].map(|_| watchers.open_own(key(1), false));
    for own in &own {
        assert_eq!(changes(own), [Change::Reset]);
    }
    let watch = watchers.open(key(1), false, None);
    assert_eq!(changes(&watch), [Change::Reset]);
    let apps: Vec<AppId> = (0..=INTEREST_MAX).map(|_| AppId::mint()).collect();
    for app in &apps {
        watchers.asked(&key(1), Topic::App(*app));
    }
    assert_eq!(
        changes(&watch),
        [Change::Reset],
        "it forgets, and is told so"
    );
    assert_eq!(watchers.table().by_topic.len(), 1);
    assert_eq!(watchers.publish(Position(1), changed(apps[0])), 0);
    assert_eq!(
        watchers.publish(Position(2), changed(apps[INTEREST_MAX])),
        4
    );

    let second = watchers.open(key(1), false, None);
    let third = watchers.open(key(1), false, None);
    assert_eq!(
        watch.next().now_or_never(),
        Some(None),
        "the oldest has ended"
    );
    assert_eq!((changes(&second).len(), changes(&third).len()), (1, 1));
    drop((watch, second));
    assert_eq!(
        watchers.publish(Position(3), changed(apps[INTEREST_MAX])),
        4
    );
    for own in &own {
        let heard = [Change::Reset, changed(apps[INTEREST_MAX])];
        assert_eq!(changes(own), [&heard[..], &heard[1..]].concat());
    }
    drop((third, own));
    let table = watchers.table();
    assert!(table.watches.is_empty() && table.by_key.is_empty() && table.by_topic.is_empty());
}

#[tokio::test]
async fn a_key_that_is_nobodys_hears_no_more() {
    let watchers = Watchers::default();
    let watch = watchers.open(key(1), true, None);
    assert!(watch.next().await.is_some());
    let (ended, ()) = tokio::join!(watch.next(), async { watchers.end_of(&key(1)) });
    assert_eq!(ended, None);
    assert_eq!(watchers.publish(Position(1), changed(AppId::mint())), 0);
}

/// A hundred thousand things that somebody has asked for: a change is heard by those who have asked for
/// it, and nobody else is looked at.
#[test]
fn a_change_costs_those_who_hear_it() {
    const APPS: usize = 100_000;
    let watchers = Watchers::default();
    let apps: Vec<AppId> = (0..APPS).map(|_| AppId::mint()).collect();
    let keys: Vec<MeshKey> = (0..APPS.div_ceil(1_000))
        .map(|n| MeshKey(tabbify_types::Digest::of(&n.to_be_bytes()).0))
        .collect();
    let watches: Vec<Watch> = keys
        .iter()
        .map(|key| watchers.open(*key, false, None))
        .collect();
    for (n, app) in apps.iter().enumerate() {
        watchers.asked(&keys[n / 1_000], Topic::App(*app));
    }
    // One thing that many have asked for.
    for key in &keys[..10] {
        watchers.asked(key, Topic::App(apps[APPS - 1]));
    }
    let before = watchers.delivered();
    assert_eq!(watchers.publish(Position(1), changed(apps[0])), 1);
    assert_eq!(watchers.publish(Position(2), changed(apps[APPS - 1])), 11);
    assert_eq!(watchers.publish(Position(3), changed(AppId::mint())), 0);
    assert_eq!(watchers.delivered() - before, 12);
    let heard = watches.iter().filter(|watch| changes(watch).len() > 1);
    assert_eq!(heard.count(), 11);
}

#[test]
fn what_stands_in_no_log_is_told_once_or_everything_is() {
    let watchers = Watchers::default();
    let app = AppId::mint();
    watchers.begin_at(Position(3));
    let edge = watchers.open(key(1), true, Some(Position(3)));
    let back_at = |position| {
        let watch = watchers.open(key(2), true, Some(Position(position)));
        changes(&watch)
    };
    assert_eq!(changes(&edge), []);
    assert_eq!(back_at(3), []);
    assert_eq!(watchers.publish_soft(changed(app)), 1);
    let told = waiting(&edge);
    assert_eq!(
        (told[0].position, &told[0].change),
        (Position(3), &changed(app))
    );
    // Whoever was away may have missed it.
    assert_eq!(back_at(3), [Change::Reset]);
    watchers.publish(Position(4), changed(app));
    assert_eq!((back_at(3), back_at(4)), (vec![Change::Reset], vec![]));
}
