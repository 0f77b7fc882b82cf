//! The search: what it finds, and what it makes of texts that were typed to break it.

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use tabbify_api::read::{AuditFilter, QueryError, ReadScope, Window};
use tabbify_log::Log;
use tabbify_types::{Position, Tenant};

use crate::history::served;
use crate::support::{Outcome, Running, Way, Wrong, app, append, client, open_log, raw, scope};

const PAGE: Window = Window::first(100);

fn text(words: &str) -> AuditFilter {
    AuditFilter {
        text: Some(words.to_owned()),
        ..AuditFilter::default()
    }
}

const SAID: &str = r#"{"text":"the quick brown fox, Größe 3"}"#;

/// Ten events of an app, and two of an agent.
async fn twelve(way: Way, dir: &Path) -> Result<(Log, Running), Wrong> {
    let (handle, log) = open_log(&dir.join("log"))?;
    append(&log, served(&Tenant::main(), app(1), "shop", 1)).await?;
    let said = vec![
        raw("tenant_main.chat", "room-7", "x.message", 1, SAID),
        raw("platform.auth", "room-7", "x.message", 1, "{}"),
    ];
    append(&client(&handle, "agent:claude"), said).await?;
    let running = Running::start_as(way, &dir.join("read"), &log).await?;
    running.reach(log.head()).await?;
    Ok((handle, running))
}

async fn found(running: &Running, filter: AuditFilter) -> Result<Vec<u64>, Wrong> {
    let page = running
        .model
        .audit(ReadScope::Platform, filter, PAGE)
        .await?;
    Ok(page.rows.iter().map(|row| row.position.get()).collect())
}

pub(crate) async fn it_finds_words_in_type_key_actor_and_data(way: Way) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, running) = twelve(way, dir.path()).await?;
    let everything: Vec<u64> = (1..=12).rev().collect();
    for (words, expected) in [
        ("agent:claude", vec![12, 11]),
        ("CLAUDE quick", vec![11]),
        ("quick claude", vec![11]),
        ("qui* rößes*", vec![]),
        ("qui* größ*", vec![11]),
        ("room-7", vec![12, 11]),
        ("app_registered", vec![1]),
        ("deploy_requested", vec![4]),
        ("no such thing", vec![]),
        ("!!!", vec![]),
        ("  ", everything),
    ] {
        assert_eq!(found(&running, text(words)).await?, expected, "{words}");
    }
    let page = running.model.audit(scope("main"), text("fox"), PAGE).await;
    let rows = page?.rows;
    assert_eq!(rows[0].data.get(), SAID);
    assert_eq!(rows[0].actor, "agent:claude");
    running.stop().await
}

pub(crate) async fn it_finds_by_exact_fields(way: Way) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, running) = twelve(way, dir.path()).await?;
    let by = async |set: fn(&mut AuditFilter)| {
        let mut filter = AuditFilter::default();
        set(&mut filter);
        found(&running, filter).await
    };
    assert_eq!(by(|_| {}).await?, (1..=12).rev().collect::<Vec<u64>>());
    assert_eq!(
        by(|f| f.actor = Some("agent:claude".to_owned())).await?,
        [12, 11]
    );
    assert_eq!(
        by(|f| f.actor = Some("claude".to_owned())).await?,
        [0_u64; 0]
    );
    assert_eq!(by(|f| f.key = Some("room-7".to_owned())).await?, [12, 11]);
    assert_eq!(by(|f| f.key = Some("ROOM-7".to_owned())).await?, [0_u64; 0]);
    assert_eq!(by(|f| f.kind = Some("app_placed".to_owned())).await?, [5]);
    assert_eq!(
        by(|f| f.segment = "platform.auth".parse().ok()).await?,
        [12]
    );
    assert_eq!(by(|f| f.segment = "*.chat".parse().ok()).await?, [11]);
    assert_eq!(
        by(|f| f.segment = "tenant*".parse().ok()).await?,
        [0_u64; 0]
    );
    let between =
        |f: &mut AuditFilter| (f.after, f.before) = (Some(Position(3)), Some(Position(6)));
    assert_eq!(by(between).await?, [5, 4]);
    running.stop().await
}

/// Text that a search box may get: words of the query language, quotes, controls, anything.
fn typed() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("\"".to_owned()),
        Just("'".to_owned()),
        Just("*".to_owned()),
        Just("\0".to_owned()),
        Just("NEAR(a b, 1)".to_owned()),
        Just(" OR ".to_owned()),
        Just("tenant:other".to_owned()),
        Just("{data} :".to_owned()),
        Just("^-+()".to_owned()),
        Just("; DROP TABLE audit; --".to_owned()),
        any::<char>().prop_map(String::from),
        "[a-z]{1,5}",
    ];
    proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

pub(crate) fn no_text_breaks_it_or_reaches_another_tenant(way: Way, cases: u32) -> Outcome {
    let runtime = tokio::runtime::Runtime::new()?;
    let dir = tempfile::tempdir()?;
    let (_log, log) = open_log(&dir.path().join("log"))?;
    let running = runtime.block_on(async {
        for slug in ["main", "other"] {
            let tenant = crate::support::tenant(slug);
            append(&log, served(&tenant, app(1), "shop", 1)).await?;
        }
        let odd = raw(
            "tenant_main.chat",
            "\u{0}\"*'",
            "x.odd",
            1,
            r#"{"a":"\" OR NEAR a b"}"#,
        );
        append(&log, vec![odd]).await?;
        let running = Running::start_as(way, &dir.path().join("read"), &log).await?;
        running.reach(log.head()).await?;
        Ok::<_, Wrong>(running)
    })?;
    let mut runner = TestRunner::new(Cases {
        cases,
        failure_persistence: None,
        ..Cases::default()
    });
    runner.run(&(typed(), typed(), 0..4_u8), |(words, exact, which)| {
        let mut filter = text(&words);
        match which {
            0 => filter.key = Some(exact),
            1 => filter.actor = Some(exact),
            2 => filter.kind = Some(exact),
            _ => {}
        }
        let answer = runtime.block_on(running.model.audit(scope("main"), filter, PAGE));
        match answer {
            Ok(page) => {
                let main = Tenant::main();
                prop_assert!(
                    page.rows
                        .iter()
                        .all(|row| row.tenant.as_ref() == Some(&main))
                );
            }
            Err(QueryError::Invalid { .. }) => {}
            Err(other) => prop_assert!(false, "{other}"),
        }
        Ok(())
    })?;
    // An odd key is found by itself.
    let key = Some("\u{0}\"*'".to_owned());
    let filter = AuditFilter {
        key,
        ..AuditFilter::default()
    };
    let page = runtime.block_on(running.model.audit(scope("main"), filter, PAGE))?;
    assert_eq!(page.rows.len(), 1);
    runtime.block_on(running.stop())
}
