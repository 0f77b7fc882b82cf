//! Tenants that cannot see each other, and pages that are whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use tabbify_api::log::EventLog;
use tabbify_api::read::{
    AuditFilter, Cursor, Listing, PAGE_LEN_MAX, QueryError, ROWS_MAX, ReadModel, ReadScope, Window,
};
use tabbify_types::event::v1::{BuildRequested, LeaseGranted, Source};
use tabbify_types::{BuildId, Digest, Epoch, InstanceId, MeshKey, SlotId, Tenant};

use crate::history::{host, registered, served};
use crate::support::{
    Outcome, Running, Way, Wrong, app, append, event, open_log, raw, scope, tenant,
};

const PAGE: Window = Window::first(ROWS_MAX);

/// Apps, leases and builds of three tenants.
async fn four_apps(log: &Arc<dyn EventLog>) -> Outcome {
    // "other" also names the app of "main" in its own segment, and its slug begins another's.
    for (slug, id, name, number) in [
        ("main", 1, "shop", 1),
        ("other", 2, "blog", 2),
        ("other", 1, "thief", 3),
        ("main-2", 4, "wiki", 4),
    ] {
        let lease = LeaseGranted {
            app: app(id),
            tenant: tenant(slug),
            slot: SlotId::FIRST,
            epoch: Epoch(1),
            instance: InstanceId(u32::try_from(number)?),
            key: MeshKey([1; 32]),
            host: host(),
        };
        let build = BuildId::mint();
        let source = Source::Upload {
            archive: Digest::of(b"archive"),
        };
        let mut events = served(&tenant(slug), app(id), name, number);
        events.push(event("platform.mesh.peers", app(id), lease));
        let requested = BuildRequested {
            build,
            app: app(id),
            source,
        };
        events.push(event(&format!("tenant_{slug}.builds"), build, requested));
        append(log, events).await?;
    }
    Ok(())
}

/// Checks what one tenant sees of each list.
async fn sees(node: &dyn ReadModel, slug: &str, expected: usize) -> Outcome {
    let (mine, slug) = (scope(slug), tenant(slug));
    let apps = node.apps(mine.clone(), None, PAGE).await?.rows;
    assert!(apps.iter().all(|row| row.tenant == slug));
    let leases = node.leases(mine.clone(), None, PAGE).await?.rows;
    assert!(leases.iter().all(|row| row.tenant == slug));
    let builds = node.builds(mine.clone(), None, PAGE).await?.rows;
    assert!(builds.iter().all(|row| row.tenant == slug));
    let deploys = node.deploys(mine.clone(), None, PAGE).await?.rows;
    assert!(deploys.iter().all(|row| row.tenant == slug));
    assert_eq!(apps.len(), expected, "{slug}");
    assert_eq!(leases.len(), expected, "{slug}");
    assert_eq!(
        (builds.len(), deploys.len()),
        (expected, expected),
        "{slug}"
    );
    assert!(node.peers(mine.clone(), PAGE).await?.rows.is_empty());
    for text in [None, Some("app_registered"), Some("secret*"), Some("main")] {
        let filter = AuditFilter {
            text: text.map(str::to_owned),
            ..AuditFilter::default()
        };
        let rows = node.audit(mine.clone(), filter, PAGE).await?.rows;
        assert!(
            rows.iter().all(|row| row.tenant.as_ref() == Some(&slug)),
            "{slug} {text:?}"
        );
    }
    Ok(())
}

pub(crate) async fn one_tenant_never_sees_another(way: Way) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, log) = open_log(&dir.path().join("log"))?;
    let running = Running::start_as(way, &dir.path().join("read"), &log).await?;
    let node = &*running.model;
    four_apps(&log).await?;
    append(
        &log,
        vec![raw("platform.auth", "secret-user", "x.secret", 1, "{}")],
    )
    .await?;
    running.reach(log.head()).await?;

    for (slug, expected) in [("main", 1), ("other", 2), ("main-2", 1), ("nobody", 0)] {
        sees(node, slug, expected).await?;
    }
    // The same id, one's own app each time; the platform sees who had it first.
    for (scope, expected) in [
        (scope("main"), Some("shop")),
        (scope("other"), Some("thief")),
        (scope("main-2"), None),
        (ReadScope::Platform, Some("shop")),
    ] {
        let found = node.app(scope.clone(), app(1)).await?;
        let name = found.map(|detail| detail.app.name.to_string());
        assert_eq!(name.as_deref(), expected, "{scope}");
    }
    assert!(
        node.versions(scope("main-2"), app(1), PAGE)
            .await?
            .rows
            .is_empty()
    );
    running.stop().await
}

/// Walks all pages of three rows; `between` runs after each.
async fn walk<T>(
    mut page: impl AsyncFnMut(Window) -> Result<Listing<T>, QueryError>,
    mut between: impl AsyncFnMut() -> Result<(), Wrong>,
) -> Result<Vec<T>, Wrong> {
    let mut all = Vec::new();
    let mut cursor = None;
    loop {
        let answer = page(Window { limit: 3, cursor }).await?;
        assert!(answer.rows.len() <= 3);
        all.extend(answer.rows);
        between().await?;
        match answer.next {
            Some(next) => cursor = Some(next),
            None => return Ok(all),
        }
    }
}

pub(crate) async fn pages_are_whole_while_events_arrive(way: Way) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, log) = open_log(&dir.path().join("log"))?;
    let running = Running::start_as(way, &dir.path().join("read"), &log).await?;
    let (node, main) = (&*running.model, Tenant::main());
    for number in 1..=11 {
        append(
            &log,
            served(&main, app(number), &format!("app-{number}"), number),
        )
        .await?;
    }
    running.reach(log.head()).await?;
    let there = log.head();

    let mut fresh = 100;
    let mut more = async || {
        fresh += 1;
        let last = append(
            &log,
            served(&main, app(fresh), &format!("new-{fresh}"), fresh),
        )
        .await?;
        running.reach(last).await
    };
    let mine = scope("main");
    let apps = walk(
        async |window| node.apps(mine.clone(), None, window).await,
        &mut more,
    );
    let apps = apps.await?;
    let ids: BTreeSet<_> = apps.iter().map(|row| row.app).collect();
    assert_eq!(ids.len(), apps.len(), "no app twice");
    assert!(
        (1..=11).all(|number| ids.contains(&app(number))),
        "none missing"
    );

    let deploys = walk(
        async |window| node.deploys(mine.clone(), None, window).await,
        &mut more,
    );
    let deploys = deploys.await?;
    let ids: BTreeSet<_> = deploys.iter().map(|row| row.deploy).collect();
    assert_eq!(ids.len(), deploys.len(), "no deploy twice");
    assert!((1..=11).all(|number| ids.contains(&crate::support::deploy(number))));

    for segment in [None, Some("tenant_*.apps"), Some("tenant_main.**")] {
        let filter = AuditFilter {
            text: Some("app_started".to_owned()),
            segment: segment.map(str::parse).transpose()?,
            ..AuditFilter::default()
        };
        let ask = async |window| {
            node.audit(ReadScope::Platform, filter.clone(), window)
                .await
        };
        let found = walk(ask, &mut more).await?;
        let places: Vec<_> = found.iter().map(|row| row.position).collect();
        assert!(
            places.is_sorted_by(|a, b| a > b),
            "newest first, none twice"
        );
        let old = places.iter().filter(|&&position| position <= there).count();
        assert_eq!(old, 11, "{segment:?}");
    }
    running.stop().await
}

pub(crate) async fn pages_are_bounded_in_bytes(way: Way) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, log) = open_log(&dir.path().join("log"))?;
    let running = Running::start_as(way, &dir.path().join("read"), &log).await?;
    let wide = format!(
        "{{\"text\":\"{}\"}}",
        "\u{1}wide ".escape_default().to_string().repeat(5_000)
    );
    let wide = wide.replace("\\u{1}", "\\u0001");
    assert!(
        wide.len() > 50_000 && wide.len() < 64 * 1024,
        "{}",
        wide.len()
    );
    for _ in 0..60 {
        let said = raw("tenant_main.chat", "room", "x.said", 1, &wide);
        append(&log, vec![said]).await?;
    }
    running.reach(log.head()).await?;
    for segment in [None, Some("tenant_*.chat")] {
        let filter = AuditFilter {
            segment: segment.map(str::parse).transpose()?,
            ..AuditFilter::default()
        };
        let (mut places, mut cursor, mut pages) = (Vec::new(), None, 0);
        loop {
            let window = Window {
                limit: ROWS_MAX,
                cursor,
            };
            let asked = running.model.audit(scope("main"), filter.clone(), window);
            let page = asked.await?;
            let len: usize = page.rows.iter().map(|row| row.data.get().len()).sum();
            assert!(len <= PAGE_LEN_MAX && !page.rows.is_empty());
            places.extend(page.rows.iter().map(|row| row.position.get()));
            pages += 1;
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(places, (1..=60).rev().collect::<Vec<u64>>());
        assert_eq!(pages, 2, "{segment:?}");
    }
    running.stop().await
}

pub(crate) async fn windows_beyond_the_limit_are_refused(way: Way) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, log) = open_log(&dir.path().join("log"))?;
    append(&log, vec![registered(&Tenant::main(), app(1), "shop")]).await?;
    let running = Running::start_as(way, &dir.path().join("read"), &log).await?;
    let (node, mine) = (&*running.model, scope("main"));
    for limit in [0, ROWS_MAX + 1, usize::MAX] {
        let window = Window::first(limit);
        let refused = node.apps(mine.clone(), None, window.clone()).await;
        assert!(matches!(
            refused,
            Err(QueryError::Invalid { what: "limit", .. })
        ));
        let refused = node
            .audit(mine.clone(), AuditFilter::default(), window.clone())
            .await;
        assert!(matches!(
            refused,
            Err(QueryError::Invalid { what: "limit", .. })
        ));
        let refused = node.peers(mine.clone(), window).await;
        assert!(matches!(
            refused,
            Err(QueryError::Invalid { what: "limit", .. })
        ));
    }
    running.stop().await
}

pub(crate) async fn cursors_of_others_are_refused(way: Way) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (_log, log) = open_log(&dir.path().join("log"))?;
    let running = Running::start_as(way, &dir.path().join("read"), &log).await?;
    let (node, mine) = (&*running.model, scope("main"));
    let long = "9".repeat(10_000);
    for text in [
        "",
        "x",
        "-1",
        "1/2",
        "' OR 1=1 --",
        "a/b/c/d",
        "main/shop/x",
        long.as_str(),
    ] {
        let window = Window {
            limit: 3,
            cursor: Some(Cursor(text.to_owned())),
        };
        let refused = |answer: Result<(), QueryError>| {
            assert!(
                matches!(answer, Err(QueryError::Invalid { what: "cursor", .. })),
                "{text}"
            );
        };
        refused(
            node.apps(mine.clone(), None, window.clone())
                .await
                .map(drop),
        );
        refused(
            node.deploys(mine.clone(), None, window.clone())
                .await
                .map(drop),
        );
        refused(
            node.leases(mine.clone(), None, window.clone())
                .await
                .map(drop),
        );
        refused(node.tokens(mine.clone(), window.clone()).await.map(drop));
        refused(
            node.audit(mine.clone(), AuditFilter::default(), window)
                .await
                .map(drop),
        );
    }
    let long = Some("x".repeat(300));
    let refused = node.apps(mine, long, Window::first(3)).await;
    assert!(matches!(
        refused,
        Err(QueryError::Invalid { what: "name", .. })
    ));
    running.stop().await
}
