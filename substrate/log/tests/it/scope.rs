//! Who may write and read what.

use tabbify_api::log::{Append, AppendError, Delivery, Expect, Filter, ReadError};
use tabbify_types::Position;

use crate::conformance::Fixture;
use crate::support::{Outcome, event, globs, next, read_all, refused_subscription, scope, segment};

pub(crate) async fn writing_needs_a_glob_for_every_event(fixture: &dyn Fixture) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (log, _) = fixture.open(dir.path(), 1 << 16).await?;
    let host = log
        .client(scope(
            "host:box1",
            &["platform.hosts.box1.reports"],
            &["platform.hosts.box1"],
        )?)
        .await?;
    let report = || event("platform.hosts.box1.reports", "r", "{}");
    let forbidden = |text: &str| {
        Err(AppendError::Forbidden {
            actor: "host:box1".to_owned(),
            segment: segment(text),
        })
    };
    host.append(Append::of(vec![report()])).await?;
    for other in [
        "platform.hosts.box2.reports",
        "platform.hosts.box1",
        "tenant_main.apps",
        "platform",
    ] {
        let batch = Append::of(vec![report(), event(other, "r", "{}")]);
        assert_eq!(host.append(batch).await, forbidden(other));
    }
    // An expectation tells a revision: only where the actor may look.
    let peeking = Append::of(vec![report()]).expecting(segment("platform"), "p", Expect::None);
    assert_eq!(host.append(peeking).await, forbidden("platform"));
    let allowed =
        Append::of(vec![report()]).expecting(segment("platform.hosts.box1"), "p", Expect::None);
    host.append(allowed).await?;
    let all = log.client(scope("test", &[], &["**"])?).await?;
    let written = read_all(&*all, Filter::default(), 10).await?;
    assert!(written.len() == 2 && written.iter().all(|event| event.actor == "host:box1"));
    Ok(())
}

pub(crate) async fn readers_see_what_filter_and_scope_both_select(
    fixture: &dyn Fixture,
) -> Outcome {
    let dir = tempfile::tempdir()?;
    let (log, writer) = fixture.open(dir.path(), 1 << 16).await?;
    for name in [
        "tenant_a.apps",
        "tenant_a.chat",
        "tenant_b.apps",
        "platform",
    ] {
        writer
            .append(Append::of(vec![event(name, "k", "{}")]))
            .await?;
    }
    let reader = log.client(scope("app", &[], &["tenant_a.*"])?).await?;
    let seen = |events: Vec<std::sync::Arc<tabbify_types::Recorded>>| {
        events
            .iter()
            .map(|event| event.segment.to_string())
            .collect::<Vec<_>>()
    };
    let all = read_all(&*reader, Filter::default(), 1).await?;
    assert_eq!(seen(all), ["tenant_a.apps", "tenant_a.chat"]);
    let chat = read_all(&*reader, Filter::segments(globs(&["tenant_a.ch*"])?), 9).await?;
    assert_eq!(seen(chat), ["tenant_a.chat"]);
    for refused in [
        "**",
        "tenant_*.apps",
        "tenant_b.apps",
        "tenant_a.**",
        "tenant_a",
    ] {
        let filter = Filter::segments(globs(&["tenant_a.apps", refused])?);
        let expected = ReadError::Forbidden {
            actor: "app".to_owned(),
            glob: refused.parse()?,
        };
        assert_eq!(
            reader.read(filter.clone(), Position(0), 9).await.err(),
            Some(expected.clone())
        );
        let subscribed = refused_subscription(&*reader, filter, Position(0)).await?;
        assert_eq!(subscribed, expected);
    }
    let mut subscription = reader.subscribe(Filter::default(), Position(0))?;
    for expected in ["tenant_a.apps", "tenant_a.chat"] {
        let Delivery::Event(event) = next(&mut *subscription).await? else {
            panic!("an event")
        };
        assert_eq!(event.segment.as_str(), expected);
    }
    assert!(matches!(
        next(&mut *subscription).await?,
        Delivery::CaughtUp(Position(4))
    ));
    writer
        .append(Append::of(vec![event("tenant_b.apps", "k", "{}")]))
        .await?;
    assert!(matches!(
        next(&mut *subscription).await?,
        Delivery::Progress(Position(5))
    ));
    // Without any read glob there is nothing to see, which is not an error.
    let nobody = log.client(scope("nobody", &[], &[])?).await?;
    assert!(read_all(&*nobody, Filter::default(), 9).await?.is_empty());
    Ok(())
}
