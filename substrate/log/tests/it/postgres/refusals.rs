//! What the engine refuses to start on, and what `verify` finds.

use std::sync::Arc;

use tabbify_api::log::{Append, Filter, LogEngine as _, ReadError};
use tabbify_log::postgres::{Engine, OpenError, Options, Standby};
use tabbify_process::SystemClock;
use tabbify_types::Position;

use super::cluster::Cluster;
use super::{lead, options};
use crate::support::{Outcome, Wrong, event};

#[test]
fn a_name_or_conninfo_that_is_none_is_refused_without_showing_it() {
    let clock = || Arc::new(SystemClock);
    let secret = "host=/tmp password=hunter2 port=x";
    let refused = Options::new(secret, clock()).expect_err("no port");
    let text = format!("{refused} {refused:?}");
    assert!(!text.contains("hunter2"), "{text}");
    let options = Options::new("host=/tmp password=hunter2", clock()).expect("a conninfo");
    assert!(!format!("{options:?}").contains("hunter2"));
    for name in ["", "1st", "a b", "A", "a\"b", "a;drop", &"x".repeat(64)] {
        let refused = options.clone().schema(name);
        assert!(matches!(refused, Err(OpenError::Schema(_))), "{name}");
    }
    assert!(options.schema("log_2").is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_promises_less_is_refused() -> Outcome {
    let Some(cluster) = Cluster::start(0).await? else {
        return Ok(());
    };
    let required = options(&cluster, "promises")?.standby(Standby::Required);
    let refused = Engine::lead(required.clone()).await;
    let Err(OpenError::Setting { setting, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(setting, "synchronous_standby_names");
    // Only who says so goes on without.
    let (engine, _) = lead(&cluster, "promises").await?;
    engine.close().await;
    let session = cluster.session(0).await?;
    session
        .batch_execute("update promises.about set format = 2")
        .await?;
    let newer = Engine::lead(options(&cluster, "promises")?).await;
    assert!(
        matches!(newer, Err(OpenError::Newer { version: 2 })),
        "{newer:?}"
    );
    session
        .batch_execute("alter system set full_page_writes = off")
        .await?;
    session.query("select pg_reload_conf()", &[]).await?;
    let reloaded = async {
        loop {
            match Engine::lead(options(&cluster, "others")?).await {
                Err(OpenError::Setting { setting, .. }) => return Ok::<_, Wrong>(setting),
                Ok(early) => early.close().await,
                Err(other) => return Err(other.into()),
            }
        }
    };
    let setting = tokio::time::timeout(std::time::Duration::from_secs(30), reloaded).await??;
    assert_eq!(setting, "full_page_writes");
    let nowhere = Options::new("host=/nowhere/at/all user=nobody", Arc::new(SystemClock))?;
    let refused = Engine::lead(nowhere).await;
    assert!(
        matches!(refused, Err(OpenError::Database { .. })),
        "{refused:?}"
    );
    Ok(())
}

/// What somebody with a hand in the tables may do, and the first position at which it shows.
const TAMPERED: &[(&str, u64, &str)] = &[
    (
        "other data",
        5,
        "update tampered.events set data = '{\"n\":9}' where position = 5",
    ),
    (
        "another key",
        5,
        "update tampered.events set key = 'other' where position = 5",
    ),
    (
        "another actor",
        5,
        "update tampered.events set actor = 'root' where position = 5",
    ),
    (
        "another time",
        5,
        "update tampered.events set at = at + 1 where position = 5",
    ),
    (
        "a cause",
        5,
        "update tampered.events set cause = 1 where position = 5",
    ),
    (
        "data that is no JSON",
        5,
        "update tampered.events set data = 'x' where position = 5",
    ),
    (
        "a number below zero",
        5,
        "update tampered.events set version = -1 where position = 5",
    ),
    (
        "an event removed",
        5,
        "delete from tampered.events where position = 5",
    ),
    (
        "a tail without its commit",
        10,
        "delete from tampered.frames where first = 9",
    ),
    (
        "a commit removed",
        5,
        "delete from tampered.frames where first = 5",
    ),
    (
        "an event put behind",
        11,
        "insert into tampered.events select 11, segment, key, rev + 100, gen_random_uuid(), kind, \
         version, batch_index, batch_len, at, actor, cause, trace, data from tampered.events \
         where position = 10",
    ),
    (
        "two events exchanged",
        5,
        "update tampered.events set position = position + 100 where position in (5, 6); \
         update tampered.events set position = case position when 105 then 6 else 5 end \
         where position > 100",
    ),
    (
        "a hash",
        5,
        "update tampered.frames set hash = decode(repeat('00', 32), 'hex') where first = 5",
    ),
    (
        "a commit of another epoch",
        5,
        "update tampered.frames set epoch = 7 where first = 5",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_is_changed_in_the_tables_is_found_with_its_position() -> Outcome {
    let Some(cluster) = Cluster::start(0).await? else {
        return Ok(());
    };
    let session = cluster.session(0).await?;
    for (name, position, change) in TAMPERED {
        let (engine, client) = lead(&cluster, "tampered").await?;
        for n in 0..5 {
            let one = |key| event("platform", key, &format!("{{\"n\":{n}}}"));
            client.append(Append::of(vec![one("a"), one("b")])).await?;
        }
        let good = Engine::verify(options(&cluster, "tampered")?).await?;
        assert_eq!((good.content.head, good.frames), (Position(10), 5));
        for (after, upto) in [(0, 10), (0, 3), (4, 10), (5, 6), (10, 10)] {
            let verified = engine.verify(Position(after), Position(upto)).await?;
            assert_eq!(verified, Position(upto), "{after} to {upto}");
        }
        session.batch_execute(change).await?;
        let found = Engine::verify(options(&cluster, "tampered")?).await;
        let Err(OpenError::Damaged { position: at, what }) = found else {
            panic!("{name}: {found:?}")
        };
        // A commit is proven whole: it is named by its first position at the latest.
        assert!(
            at.get() == *position || at.get() + 1 == *position,
            "{name}: {at} {what}"
        );
        if !name.contains("tail") && !name.contains("behind") {
            let piece = engine.verify(Position(4), Position(10)).await;
            assert!(
                matches!(piece, Err(ReadError::Damaged { .. })),
                "{name}: {piece:?}"
            );
        }
        if name.contains("an event removed") {
            drop(engine);
            let again = Engine::lead(options(&cluster, "tampered")?).await?;
            let reader = again.client(crate::support::scope("r", &[], &["**"])?);
            let read = reader.read(Filter::default(), Position(0), 100).await;
            assert!(matches!(read, Err(ReadError::Damaged { .. })), "{read:?}");
            again.close().await;
        } else {
            engine.close().await;
        }
        session
            .batch_execute("drop schema tampered cascade")
            .await?;
    }
    Ok(())
}
