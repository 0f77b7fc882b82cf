//! One suite, two ways to ask: each case is a test in process and over HTTP.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use serde::Serialize;
use tabbify_api::log::EventLog;
use tabbify_api::read::{
    ApprovalStatus, AuditFilter, Cursor, QueryError, ReadModel, ReadScope, Window,
};
use tabbify_types::Tenant;

use crate::history::any_history;
use crate::support::{Newer, Outcome, Running, Way, app, append, open_log, scope};

/// Every case as a test of each way.
macro_rules! suite {
    ($($module:ident { $($case:ident)* })*) => {
        mod in_process {
            $($(
                #[tokio::test]
                async fn $case() -> crate::support::Outcome {
                    crate::$module::$case(crate::support::Way::InProcess).await
                }
            )*)*
        }
        mod over_http {
            $($(
                #[tokio::test]
                async fn $case() -> crate::support::Outcome {
                    crate::$module::$case(crate::support::Way::OverHttp).await
                }
            )*)*
        }
    };
}

suite! {
    tenants {
        one_tenant_never_sees_another
        pages_are_whole_while_events_arrive
        pages_are_bounded_in_bytes
        windows_beyond_the_limit_are_refused
        cursors_of_others_are_refused
    }
    audit {
        it_finds_words_in_type_key_actor_and_data
        it_finds_by_exact_fields
    }
    folds {
        waiting_says_when_it_is_there_and_how_far_it_is_not
    }
}

#[test]
fn no_text_breaks_it_in_process() -> Outcome {
    crate::audit::no_text_breaks_it_or_reaches_another_tenant(Way::InProcess, 400)
}

#[test]
fn no_text_breaks_it_over_http() -> Outcome {
    crate::audit::no_text_breaks_it_or_reaches_another_tenant(Way::OverHttp, 300)
}

/// An answer as it can be compared.
fn shown<T: Serialize>(answer: Result<T, QueryError>) -> Result<serde_json::Value, QueryError> {
    answer.map(|answer| serde_json::to_value(answer).expect("an answer serializes"))
}

/// One of all questions.
async fn ask(
    model: &dyn ReadModel,
    which: u8,
    scope: ReadScope,
    window: Window,
    text: Option<String>,
) -> Result<serde_json::Value, QueryError> {
    let id = app(u128::from(which) % 3 + 1);
    let one = text.is_some().then_some(id);
    let status = text.is_some().then_some(ApprovalStatus::Pending);
    match which % 12 {
        0 => shown(model.apps(scope, text, window).await),
        1 => shown(model.app(scope, id).await),
        2 => shown(model.versions(scope, id, window).await),
        3 => shown(model.deploys(scope, one, window).await),
        4 => shown(model.builds(scope, one, window).await),
        5 => shown(model.approvals(scope, status, window).await),
        6 => shown(model.peers(scope, window).await),
        7 => shown(model.leases(scope, one, window).await),
        8 => shown(model.tokens(scope, window).await),
        9 => {
            let actor = Some("user:owner".to_owned());
            let filter = AuditFilter {
                text,
                actor,
                ..AuditFilter::default()
            };
            shown(model.audit(scope, filter, window).await)
        }
        10 => {
            let filter = AuditFilter {
                key: text,
                segment: "tenant_*.apps".parse().ok(),
                ..AuditFilter::default()
            };
            shown(model.audit(scope, filter, window).await)
        }
        _ => {
            let filter = AuditFilter {
                kind: text,
                after: Some(tabbify_types::Position(3)),
                ..AuditFilter::default()
            };
            shown(model.audit(scope, filter, window).await)
        }
    }
}

#[test]
fn both_ways_answer_every_question_alike() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut runner = TestRunner::new(Cases {
        cases: 8,
        failure_persistence: None,
        ..Cases::default()
    });
    let text = prop_oneof![
        Just(None),
        "[a-z:*]{0,8}".prop_map(Some),
        "\\PC{0,300}".prop_map(Some),
    ];
    let limit = prop_oneof![1..4_usize, Just(0), Just(501), Just(500)];
    let cursor = prop_oneof![
        3 => Just(None),
        1 => "[0-9a-z/-]{0,9}".prop_map(|text| Some(Cursor(text))),
        1 => Just(Some(Cursor("9".repeat(600)))),
    ];
    let question = (0..120_u8, any::<bool>(), limit, cursor, text);
    let questions = proptest::collection::vec(question, 60);
    runner
        .run(&(any_history(), questions), |(events, questions)| {
            runtime.block_on(async {
                let dir = tempfile::tempdir().unwrap();
                let (_log, log) = open_log(&dir.path().join("log")).unwrap();
                let log: Arc<dyn EventLog> = Arc::new(Newer(log));
                append(&log, events).await.unwrap();
                let home = dir.path().join("read");
                let running = Running::start_as(Way::OverHttp, &home, &log).await.unwrap();
                running.reach(log.head()).await.unwrap();
                for (which, all, limit, cursor, text) in questions {
                    let scope = match all {
                        true => ReadScope::Platform,
                        false => scope(Tenant::main().as_str()),
                    };
                    let window = Window { limit, cursor };
                    let near = ask(
                        &running.node,
                        which,
                        scope.clone(),
                        window.clone(),
                        text.clone(),
                    );
                    let far = ask(&*running.model, which, scope, window, text);
                    let (near, far) = (near.await, far.await);
                    prop_assert_eq!(near, far, "question {}", which);
                }
                running.stop().await.unwrap();
                Ok(())
            })
        })
        .unwrap();
}
