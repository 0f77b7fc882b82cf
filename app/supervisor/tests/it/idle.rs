//! Instances that have nothing to do: they end, whoever comes wakes them, and whatever crashes in between, one
//! process at most lives, and nothing is left of one that sleeps.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tabbify_api::attach::{ATTACH_PORT, EXEC_PATH, RunCommand};
use tabbify_api::doorbell::{Heard, Knock};
use tabbify_api::log::{EventLog, Line};
use tabbify_process::env;
use tabbify_supervisor::failpoint::{self, Point};
use tabbify_supervisor::{Doorbell, Guest};
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{APP_PORT, AppId, MeshKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::points::{APP, Chance, Ended, HOME, Moment, POINT, crash, long};
use crate::support::{App, GUEST, Machine, Outcome, WATCHDOG, Wrong, instance};

/// After how long an instance of these tests is idle.
const SOON: Option<Duration> = Some(Duration::from_millis(200));

/// Rings for a port of an instance; what the doorbell says, and the connection.
async fn ring(
    doorbell: &Doorbell,
    of: InstanceRef,
    port: u16,
    peer: MeshKey,
) -> Result<(Option<Heard>, DuplexStream), Wrong> {
    let guest = guest(peer, false)?;
    ring_as(doorbell, of, port, guest).await
}

fn guest(peer: MeshKey, is_node: bool) -> Result<Guest, Wrong> {
    let remote = "[fd5a:1f00:1:9::1]:1".parse()?;
    Ok(Guest {
        peer,
        remote,
        is_node,
    })
}

async fn ring_as(
    doorbell: &Doorbell,
    of: InstanceRef,
    port: u16,
    guest: Guest,
) -> Result<(Option<Heard>, DuplexStream), Wrong> {
    let (mut ours, theirs) = duplex(4096);
    let doorbell = doorbell.clone();
    #[expect(clippy::disallowed_methods, reason = "it ends with the connection")]
    tokio::spawn(async move { doorbell.serve(guest, theirs).await });
    ours.write_all(&Knock { of, port }.to_bytes()).await?;
    let heard = timeout(WATCHDOG, ours.read_u8()).await??;
    Ok((Heard::of(heard), ours))
}

/// Rings, asks, and gives the whole answer.
async fn get(doorbell: &Doorbell, of: InstanceRef) -> Result<String, Wrong> {
    let (heard, mut stream) = ring(doorbell, of, APP_PORT, GUEST).await?;
    if heard != Some(Heard::Held) {
        return Err(format!("{of:?}: {heard:?}").into());
    }
    let request = b"GET /there HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut answer = String::new();
    timeout(WATCHDOG, stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}

async fn served(doorbell: &Doorbell, of: InstanceRef) -> Outcome {
    let answer = get(doorbell, of).await?;
    match answer.contains("hello from /there") {
        true => Ok(()),
        false => Err(format!("{of:?} answers {answer:?}").into()),
    }
}

/// Waits until nothing is left of an instance but its place.
async fn asleep(machine: &Machine, of: InstanceRef) -> Outcome {
    let gone = |it: &Machine| it.processes().is_empty() && !it.dir(of).exists();
    machine.eventually("it sleeps", gone).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wake_serves_all_who_wait() -> Outcome {
    let (machine, of) = (Machine::new()?, instance(AppId::mint(), 1));
    let supervisor = machine.supervisor().await?;
    machine.place_until_idle(of, App::Hello, SOON).await?;
    for round in 1..=2 {
        machine.reported(of, "app_healthy").await?;
        asleep(&machine, of).await?;
        let mut all = JoinSet::new();
        for _ in 0..50 {
            let doorbell = supervisor.doorbell();
            all.spawn(async move {
                served(&doorbell, of)
                    .await
                    .map_err(|error| error.to_string())
            });
        }
        while let Some(one) = all.join_next().await {
            one??;
        }
        assert!(machine.processes().len() <= 1);
        let woken = |it: &[String]| it.iter().filter(|kind| *kind == "app_woken").count();
        let mut said = machine.reports_of(of).await?;
        while woken(&said) < round {
            tokio::time::sleep(Duration::from_millis(5)).await;
            said = machine.reports_of(of).await?;
        }
        assert_eq!(woken(&said), round, "{said:?}");
    }
    // Retired while it sleeps: nothing is woken for it.
    asleep(&machine, of).await?;
    machine.order_stop(of).await?;
    machine.reported(of, "app_stopped").await?;
    let said = machine.reports_of(of).await?;
    assert_eq!(said.last().map(String::as_str), Some("app_stopped"));
    let (heard, _) = ring(&supervisor.doorbell(), of, APP_PORT, GUEST).await?;
    assert_eq!(heard, Some(Heard::NotHere));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_woken_by_whom_it_would_not_let_in() -> Outcome {
    let (machine, of) = (Machine::new()?, instance(AppId::mint(), 1));
    let supervisor = machine.supervisor().await?;
    machine.place_until_idle(of, App::Hello, SOON).await?;
    machine.reported(of, "app_idled").await?;
    asleep(&machine, of).await?;
    let doorbell = supervisor.doorbell();
    for (of, port, peer, expected) in [
        (of, APP_PORT, MeshKey([1; 32]), Heard::Forbidden),
        (of, 5432, GUEST, Heard::Forbidden),
        (of, ATTACH_PORT, GUEST, Heard::Forbidden),
        (instance(of.app, 2), APP_PORT, GUEST, Heard::NotHere),
        (instance(AppId::mint(), 1), APP_PORT, GUEST, Heard::NotHere),
    ] {
        let (heard, mut stream) = ring(&doorbell, of, port, peer).await?;
        assert_eq!(heard, Some(expected));
        assert_eq!(stream.read(&mut [0; 8]).await?, 0, "and that is all");
    }
    // Who says nothing, or nonsense, is heard by nobody; who leaves is waited for by nobody.
    let (mut nonsense, theirs) = duplex(64);
    nonsense
        .write_all(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n")
        .await?;
    timeout(WATCHDOG, doorbell.serve(guest(GUEST, true)?, theirs)).await?;
    assert_eq!(
        machine.reports_of(of).await?.last().map(String::as_str),
        Some("app_idled")
    );
    assert!(machine.processes().is_empty());
    Ok(())
}

/// A node runs a command in an app that sleeps: it wakes, and says what it makes of that. A port that it does not
/// have wakes nobody, whoever knocks.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_of_a_node_wakes_it() -> Outcome {
    let (machine, of) = (Machine::new()?, instance(AppId::mint(), 1));
    let supervisor = machine.supervisor().await?;
    machine.place_until_idle(of, App::Hello, SOON).await?;
    machine.reported(of, "app_idled").await?;
    asleep(&machine, of).await?;
    let (doorbell, node) = (supervisor.doorbell(), guest(MeshKey([1; 32]), true)?);
    let (heard, _) = ring_as(&doorbell, of, 5432, node).await?;
    assert_eq!(heard, Some(Heard::Forbidden));
    assert!(machine.processes().is_empty());
    let (heard, mut stream) = ring_as(&doorbell, of, ATTACH_PORT, node).await?;
    assert_eq!(heard, Some(Heard::Held));
    let command = ["ls".to_owned()].into();
    let body = serde_json::to_string(&RunCommand { command })?;
    let len = body.len();
    let head = format!("POST {EXEC_PATH} HTTP/1.1\r\nhost: app\r\ncontent-length: {len}\r\n\r\n");
    stream.write_all((head + &body).as_bytes()).await?;
    let mut answer = String::new();
    timeout(WATCHDOG, stream.read_to_string(&mut answer)).await??;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("failed"), "a component has none: {answer}");
    machine.reported(of, "app_woken").await?;
    asleep(&machine, of).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_wakes_while_the_log_is_away() -> Outcome {
    let (machine, of) = (Machine::new()?, instance(AppId::mint(), 1));
    let line = Line::to(machine.host_log());
    let log: Arc<dyn EventLog> = Arc::<Line>::clone(&line);
    let supervisor = machine.supervisor_with(log).await?;
    machine.place_until_idle(of, App::Hello, SOON).await?;
    machine.reported(of, "app_idled").await?;
    asleep(&machine, of).await?;
    line.join(None);
    for _ in 0..3 {
        served(&supervisor.doorbell(), of).await?;
    }
    assert_eq!(machine.processes().len(), 1);
    line.join(Some(machine.host_log()));
    machine.reported(of, "app_woken").await?;
    asleep(&machine, of).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_what_cannot_wake_is_told_why() -> Outcome {
    let (machine, of) = (Machine::new()?, instance(AppId::mint(), 1));
    let supervisor = machine.supervisor().await?;
    machine.place_until_idle(of, App::Hello, SOON).await?;
    machine.reported(of, "app_idled").await?;
    asleep(&machine, of).await?;
    std::fs::remove_dir_all(machine.home.path().join("objects"))?;
    let answer = get(&supervisor.doorbell(), of).await?;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("x-tabbify-error: unavailable"), "{answer}");
    assert!(answer.contains("could not be woken: "), "{answer}");
    // It is the platform's to place another, and not this machine's to try again and again.
    machine.reported(of, "app_failed").await?;
    asleep(&machine, of).await?;
    let (heard, _) = ring(&supervisor.doorbell(), of, APP_PORT, GUEST).await?;
    assert_eq!(heard, Some(Heard::NotHere));
    Ok(())
}

/// It sleeps, is woken, sleeps again, and is retired; it goes on where it was left.
async fn story(machine: &Machine, app: AppId, doorbell: &Doorbell) -> Outcome {
    let of = instance(app, 1);
    if machine.ordered().await?.0.is_empty() {
        machine.place_until_idle(of, App::Hello, SOON).await?;
    }
    machine.reported(of, "app_idled").await?;
    asleep(machine, of).await?;
    served(doorbell, of).await?;
    machine.reported(of, "app_woken").await?;
    asleep(machine, of).await
}

/// The child: a supervisor in a process of its own, for as long as it is let.
#[tokio::test(flavor = "multi_thread")]
async fn supervisor_child() -> Outcome {
    let (Some(home), Some(app)) = (env::read(HOME), env::read(APP)) else {
        // Not a child: there is nothing to tell.
        return Ok(());
    };
    let point = env::read(POINT);
    if let Some((point, nth)) = point.as_deref().and_then(|at| at.split_once(' ')) {
        let point = Point::ALL.get(point.parse::<usize>()?);
        failpoint::arm(*point.ok_or("no such point")?, nth.parse()?);
    }
    let machine = Machine::at(Path::new(&home))?;
    let supervisor = machine.supervisor().await?;
    story(&machine, app.parse()?, &supervisor.doorbell()).await
}

const CHILD: &str = "idle::supervisor_child";

/// What was said of an instance that was run, slept and woke up some times, and was retired: each step once.
fn is_a_life(said: &[String]) -> bool {
    let [starting, started, healthy, rest @ .., stopped] = said else {
        return false;
    };
    let begins = [starting, started, healthy];
    let sleeps = rest
        .strip_suffix(&["instance_drained".to_owned()])
        .unwrap_or(rest);
    let turns = sleeps.iter().enumerate();
    let mut turns = turns.map(|(n, kind)| (n % 2 == 0, kind.as_str()));
    begins == ["app_starting", "app_started", "app_healthy"]
        && turns.all(|turn| matches!(turn, (true, "app_idled") | (false, "app_woken")))
        && stopped == "app_stopped"
}

/// A supervisor of this process finds what the crashes have left, and brings the story to its end.
async fn reconcile(home: &Path, app: AppId) -> Outcome {
    let (machine, of) = (Machine::at(home)?, instance(app, 1));
    let supervisor = machine.supervisor().await?;
    story(&machine, app, &supervisor.doorbell()).await?;
    served(&supervisor.doorbell(), of).await?;
    assert_eq!(machine.processes().len(), 1, "one holder");
    machine.order_stop(of).await?;
    machine.reported(of, "app_stopped").await?;
    let empty = |it: &Machine| {
        let runners = std::fs::read_dir(it.config.data_dir.join("runners"));
        it.processes().is_empty() && runners.is_ok_and(|mut left| left.next().is_none())
    };
    machine.eventually("nothing is left", empty).await?;
    let said = machine.reports_of(of).await?;
    match is_a_life(&said) {
        true => Ok(()),
        false => Err(format!("said: {said:?}").into()),
    }
}

/// The crash at each of these moments, each on a machine of its own, several at a time: they mostly wait.
async fn enumerate(moments: &[(Point, u16)]) -> Outcome {
    let crashes = stream::iter(moments).map(|(point, nth)| async move {
        let (home, app) = (tempfile::tempdir()?, AppId::mint());
        let _ended = Ended(home.path());
        let wrong = |error: Wrong| -> Wrong { format!("{point:?}, passing {nth}: {error}").into() };
        let crashed = crash(CHILD, home.path(), app, Moment::At(*point, *nth)).await;
        let status = crashed.map_err(wrong)?;
        assert!(!status.success(), "{point:?} is not passed {nth} times");
        reconcile(home.path(), app).await.map_err(wrong)
    });
    crashes.buffer_unordered(4).try_collect::<()>().await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_of_falling_asleep() -> Outcome {
    use Point::{
        AskedToStop, Asleep, BeforeRemove, BeforeReport, BeforeSleep, BeforeStop, BeforeTold,
        Ended, InstanceRemoved, Removed, Reported, Told,
    };
    // What is said third is that it is idle.
    let mut moments = vec![(BeforeReport, 3), (Reported, 3)];
    let steps = [
        BeforeTold,
        Told,
        BeforeSleep,
        Asleep,
        BeforeStop,
        AskedToStop,
        Ended,
    ];
    moments.extend(steps.map(|point| (point, 1)));
    moments.extend([BeforeRemove, InstanceRemoved, Removed].map(|point| (point, 1)));
    enumerate(&moments).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_of_waking_up() -> Outcome {
    use Point::{
        BeforeReport, BeforeWake, BootWritten, DirectoryMade, Locked, Met, Prepared, Reported,
        Rung, Visited, Woken,
    };
    let mut moments = vec![(Rung, 1), (BeforeWake, 1)];
    // The first passing was that of the spawn.
    moments.extend([DirectoryMade, Locked, BootWritten, Prepared].map(|point| (point, 2)));
    moments.extend([
        (Woken, 1),
        (Met, 2),
        (Visited, 1),
        (BeforeReport, 4),
        (Reported, 4),
    ]);
    enumerate(&moments).await
}

/// One crash after the other on the same machine, wherever chance puts them.
#[tokio::test(flavor = "multi_thread")]
async fn killed_by_chance_while_it_sleeps_and_wakes() -> Outcome {
    let schedules = if long() { 1_000 } else { 3 };
    for _ in 0..schedules {
        let seed = u64::from_le_bytes(tabbify_process::random());
        let (home, app, mut chance) = (tempfile::tempdir()?, AppId::mint(), Chance(seed));
        let _ended = Ended(home.path());
        let mut moments = Vec::new();
        for _ in 0..1 + chance.below(4) {
            moments.push(chance.moment(&Point::ALL, 5_000_000)?);
        }
        println!("seed {seed}: {moments:?}");
        let wrong = |error: Wrong| -> Wrong { format!("seed {seed}, {moments:?}: {error}").into() };
        for moment in &moments {
            let ended = crash(CHILD, home.path(), app, *moment)
                .await
                .map_err(wrong)?;
            if ended.success() {
                // The story has come to its end.
                break;
            }
        }
        reconcile(home.path(), app).await.map_err(wrong)?;
    }
    Ok(())
}
