//! How fast it folds: measured and printed, not asserted. `--nocapture` shows it.

use std::time::Duration;

use tabbify_api::read::{AuditFilter, ReadModel as _, ReadScope, Window};
use tabbify_types::Tenant;
use tokio::time::Instant;

use crate::history::served;
use crate::support::{Running, app, append, open_log};

const EVENTS: u32 = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_events() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, log) = open_log(&dir.path().join("log")).unwrap();
    let mut events = Vec::new();
    for number in 0..u128::from(EVENTS / 10) {
        events.extend(served(
            &Tenant::main(),
            app(number),
            &format!("app-{number}"),
            number,
        ));
    }
    let last = append(&log, events).await.unwrap();
    assert_eq!(last.get(), u64::from(EVENTS));
    let began = Instant::now();
    let running = Running::start(&dir.path().join("read"), &log)
        .await
        .unwrap();
    let status = running.node.status();
    assert!(status.lag_events > 0 && status.lag_ms > 0, "{status:?}");
    running
        .node
        .wait_for(last, Duration::from_secs(300))
        .await
        .unwrap();
    let took = began.elapsed();
    let rate = f64::from(EVENTS) / took.as_secs_f64();
    let file = std::fs::metadata(dir.path().join("read/read-0000000001.sqlite")).unwrap();
    println!(
        "folded {EVENTS} events in {took:?}: {rate:.0} events/s, {} MB",
        file.len() >> 20
    );

    let filter = AuditFilter {
        text: Some("app_registered app-4711".to_owned()),
        ..AuditFilter::default()
    };
    let began = Instant::now();
    let page = running
        .node
        .audit(ReadScope::Platform, filter, Window::first(10))
        .await
        .unwrap();
    println!(
        "search for two words: {:?}, {} found",
        began.elapsed(),
        page.rows.len()
    );
    assert_eq!(page.rows.len(), 1);
    running.stop().await.unwrap();
}
