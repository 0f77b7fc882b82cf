//! The coordinator is killed at every append that a deploy takes, before it has reached the log and after: the
//! next one brings the deploy to the same end, and nothing happens twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::fold::Fold as _;
use tabbify_api::log::{
    Append, AppendError, Appended, Delivery, EventLog, Filter, Page, ReadError, Subscribe,
};
use tabbify_coordinator::{Coordinator, Options, State};
use tabbify_log::Log;
use tabbify_process::{Clock, Importance, ManualClock, Tasks};
use tabbify_types::event::Event;
use tabbify_types::event::v1::{
    AppFailed, AppHealthy, AppStarted, AppStarting, AppStopped, DeployOutcome, FailureReason,
    InstanceDrained, InstanceRef, Placement,
};
use tabbify_types::{
    AppId, AppUla, DeployId, HostName, InstanceId, InstanceUla, Position, Recorded, Segment,
    VersionNumber,
};
use tokio::sync::Notify;

use crate::support::{
    Fallible, NOW, WATCHDOG, append, config, deploy_version, eventually, finished, history, key_of,
    open, publish, register, signer, start,
};

/// What serves, and what is deployed then. Version 1 is the one that every app here is registered with.
const FIRST: VersionNumber = VersionNumber(2);
const SECOND: VersionNumber = VersionNumber(3);
/// More appends than any of these deploys takes.
const APPENDS_MAX: usize = 100;

/// Where the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    After,
}

/// A log whose writer dies with its `nth` append.
#[derive(Debug)]
struct Mortal {
    log: Arc<dyn EventLog>,
    nth: usize,
    when: When,
    appends: AtomicUsize,
    dies: Notify,
}

impl EventLog for Mortal {
    fn append(&self, batch: Append) -> BoxFuture<'_, Result<Appended, AppendError>> {
        Box::pin(async move {
            if self.appends.fetch_add(1, Ordering::Relaxed) + 1 != self.nth {
                return self.log.append(batch).await;
            }
            if self.when == When::After {
                // Whatever the log answers, nobody hears it.
                let _ = self.log.append(batch).await;
            }
            self.dies.notify_one();
            std::future::pending().await
        })
    }

    fn read(
        &self,
        filter: Filter,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page, ReadError>> {
        self.log.read(filter, after, limit)
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Result<Box<dyn Subscribe>, ReadError> {
        self.log.subscribe(filter, after)
    }

    fn head(&self) -> Position {
        self.log.head()
    }
}

/// A deploy to kill the coordinator in.
#[derive(Debug, Clone, Copy)]
struct Story {
    replicas: [u16; 2],
    volume: bool,
    /// Whether the instances of the second version become healthy.
    works: bool,
}

const STORIES: [Story; 5] = [
    Story {
        replicas: [1, 1],
        volume: false,
        works: true,
    },
    Story {
        replicas: [3, 2],
        volume: false,
        works: true,
    },
    Story {
        replicas: [2, 3],
        volume: false,
        works: false,
    },
    Story {
        replicas: [1, 1],
        volume: true,
        works: true,
    },
    Story {
        replicas: [1, 1],
        volume: true,
        works: false,
    },
];

/// Plays every machine: does what it is told, and says so. Instances of `broken` fail.
async fn machines(log: Arc<dyn EventLog>, broken: Option<VersionNumber>) -> Fallible<()> {
    let orders = Filter::segments(["platform.hosts.*".parse()?]);
    let mut orders = log.subscribe(orders, Position(0))?;
    loop {
        let Delivery::Event(recorded) = orders.next().await? else {
            continue;
        };
        let host = recorded.segment.as_str().strip_prefix("platform.hosts.");
        let Some(host) = host.and_then(|host| host.parse::<HostName>().ok()) else {
            continue;
        };
        for (of, report) in obeyed(&recorded, broken)? {
            append(&*log, Segment::host_reports(&host), of.app, report).await?;
        }
    }
}

/// What a machine says after an order.
fn obeyed(
    recorded: &Recorded,
    broken: Option<VersionNumber>,
) -> Fallible<Vec<(InstanceRef, Event)>> {
    let (of, reports) = match recorded.event()? {
        Some(Event::AppPlaced(it)) => {
            let of = InstanceRef {
                app: it.app,
                instance: it.instance,
            };
            let started = AppStarted {
                of,
                app_ula: AppUla::derive(of.app),
                instance_ula: InstanceUla::derive(of.app, of.instance),
                key: key_of(of),
                secrets: std::collections::BTreeMap::new(),
            };
            let last: Event = if broken == Some(it.version) {
                let failed = AppFailed {
                    of,
                    reason: FailureReason::Unhealthy,
                    detail: "It does not answer.".to_owned(),
                    log_tail: String::new(),
                };
                failed.into()
            } else {
                AppHealthy { of }.into()
            };
            let starting = AppStarting { of };
            (of, vec![starting.into(), started.into(), last])
        }
        Some(Event::AppStopRequested(it)) => {
            let of = it.of;
            let drained = InstanceDrained {
                of,
                finished: 0,
                cut: 0,
            };
            (of, vec![drained.into(), AppStopped { of }.into()])
        }
        _ => return Ok(Vec::new()),
    };
    Ok(reports.into_iter().map(|report| (of, report)).collect())
}

/// What the log says, after each of its events a look at what must always hold.
async fn folded(log: &dyn EventLog) -> Fallible<State> {
    let mut state = State::default();
    let (mut epochs, mut outcomes) = (BTreeSet::new(), BTreeSet::new());
    for recorded in history(log).await? {
        state.apply(&recorded)?;
        let order = recorded.segment.as_str().starts_with("platform.hosts.");
        match recorded.event()? {
            Some(Event::AppPlaced(it)) if !order => {
                assert!(epochs.insert((it.app, it.slot, it.epoch)), "an epoch twice");
            }
            Some(Event::DeployFinished(it)) => {
                assert!(outcomes.insert(it.deploy), "two outcomes");
            }
            _ => {}
        }
        for app in state.apps.values() {
            assert!(app.holders().count() <= 1, "a volume has two holders");
        }
    }
    Ok(state)
}

/// Waits until nothing is left to do, and gives what there is then.
async fn at_rest(log: &dyn EventLog, app: AppId) -> Fallible<State> {
    let rests = || async {
        let state = folded(log).await.map_err(|error| error.to_string())?;
        let it = state.apps.get(&app).ok_or("no app")?;
        let lives = |instance: &InstanceId| it.answers(*instance) && it.lives(*instance);
        let rests = it.open.is_empty()
            && it.rollout.is_none()
            && !it.instances.is_empty()
            && it.instances.keys().all(lives);
        rests.then_some(state).ok_or_else(|| "busy".to_owned())
    };
    eventually(rests).await
}

async fn begin(log: Arc<dyn EventLog>, tasks: &Tasks) -> Fallible<Coordinator> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW));
    let options = Options::new(Arc::new(signer));
    Ok(Coordinator::start(&config("box1")?, log, options, clock, tasks).await?)
}

/// Brings the first version into service, then dies with the `nth` append that the second one takes; whether
/// there was one.
async fn told(story: Story, nth: usize, when: When) -> Fallible<bool> {
    let dir = tempfile::tempdir()?;
    let (log, client) = open(dir.path())?;
    for host in ["box2", "box3", "box1"] {
        let joins = Tasks::new();
        start(host, &log, &joins).await?;
        assert!(joins.shutdown(WATCHDOG).await);
    }
    let app = register(&*client, "shop").await?;
    for (version, replicas) in [FIRST, SECOND].into_iter().zip(story.replicas) {
        let placement = Placement {
            volume: story.volume,
            replicas,
            ..Placement::default()
        };
        publish(&*client, app, version, placement).await?;
    }
    let playing = Tasks::new();
    let (theirs, broken) = (Arc::clone(&client), (!story.works).then_some(SECOND));
    playing.spawn("machines", Importance::Detached, async move {
        if let Err(error) = machines(theirs, broken).await {
            tracing::error!(error, "the machines are gone");
        }
    });
    let tasks = Tasks::new();
    start("box1", &log, &tasks).await?;
    let before = deploy_version(&*client, app, FIRST).await?;
    assert_eq!(finished(&*client, before).await?, DeployOutcome::Succeeded);
    at_rest(&*client, app).await?;
    assert!(tasks.shutdown(WATCHDOG).await);

    let deploy = deploy_version(&*client, app, SECOND).await?;
    let died = under_a_mortal(&log, &*client, (app, deploy), nth, when).await?;
    let outcome = finished(&*client, deploy).await?;
    assert_eq!(outcome == DeployOutcome::Succeeded, story.works);
    let state = at_rest(&*client, app).await?;
    holds(&state, app, story);
    playing.shutdown(Duration::ZERO).await;
    log.close().await;
    Ok(died)
}

/// Lets a coordinator work that dies, and then one that does not, until all is done.
async fn under_a_mortal(
    log: &Log,
    client: &dyn EventLog,
    (app, deploy): (AppId, DeployId),
    nth: usize,
    when: When,
) -> Fallible<bool> {
    let mortal = Arc::new(Mortal {
        log: log.client(Coordinator::log_scope()),
        nth,
        when,
        appends: AtomicUsize::new(0),
        dies: Notify::new(),
    });
    let tasks = Tasks::new();
    begin(Arc::clone(&mortal) as Arc<dyn EventLog>, &tasks).await?;
    let done = async {
        finished(client, deploy).await?;
        at_rest(client, app).await
    };
    tokio::select! {
        done = done => {
            done?;
            assert!(tasks.shutdown(WATCHDOG).await);
            return Ok(false);
        }
        () = mortal.dies.notified() => {}
    }
    // What it was doing is gone with it.
    tasks.shutdown(Duration::ZERO).await;
    let tasks = Tasks::new();
    begin(log.client(Coordinator::log_scope()), &tasks).await?;
    finished(client, deploy).await?;
    at_rest(client, app).await?;
    assert_eq!(tasks.failure(), None);
    assert!(tasks.shutdown(WATCHDOG).await);
    Ok(true)
}

/// Desired equals actual: as many as the version wants, of it alone, one a slot, each with its lease.
fn holds(state: &State, id: AppId, story: Story) {
    let app = &state.apps[&id];
    let (version, replicas) = match story.works {
        true => (SECOND, story.replicas[1]),
        false => (FIRST, story.replicas[0]),
    };
    let serving = app.serving.as_ref().expect("INVARIANT: it serves");
    assert_eq!(serving.version, version);
    let living: BTreeSet<InstanceId> = app.instances.keys().copied().collect();
    assert_eq!(serving.instances, living);
    assert!(living.contains(&serving.primary));
    assert_eq!(living.len(), usize::from(replicas));
    let slots: BTreeSet<_> = app.instances.values().map(|it| it.slot).collect();
    assert_eq!(slots.len(), living.len(), "two in a slot");
    assert!(app.instances.values().all(|it| it.version == version));
    assert_eq!(app.leases.keys().copied().collect::<BTreeSet<_>>(), living);
    assert!(app.open.is_empty() && state.waiting.is_empty() && state.unsettled.is_empty());
    let hosts: BTreeSet<_> = app.instances.values().map(|it| &it.host).collect();
    assert_eq!(hosts.len(), living.len().min(3), "they are spread");
}

async fn killed_everywhere(story: Story) {
    for when in [When::Before, When::After] {
        let mut nth = 1;
        loop {
            let died = told(story, nth, when).await;
            let died = died.unwrap_or_else(|error| panic!("{story:?} {when:?} {nth}: {error}"));
            if !died {
                break;
            }
            nth += 1;
            assert!(nth < APPENDS_MAX, "it does not come to an end");
        }
        assert!(nth > 5, "{nth}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_beside_the_other() {
    killed_everywhere(STORIES[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_become_two() {
    killed_everywhere(STORIES[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_none_works() {
    killed_everywhere(STORIES[2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_after_the_other() {
    killed_everywhere(STORIES[3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_volume_goes_back() {
    killed_everywhere(STORIES[4]).await;
}
