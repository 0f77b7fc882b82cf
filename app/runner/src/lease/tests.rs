//! When a lease is renewed, and when it is lost, in virtual time.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Mutex as StdMutex;

use super::*;

const LIFE: Duration = Duration::from_secs(600);
const GRACE: Duration = Duration::from_secs(3600);
const FENCED: &str = "a newer instance has taken over";

/// A coordinator that answers what was written down, then what was written last; and when it was asked.
struct Script {
    answers: StdMutex<VecDeque<Asked>>,
    asked: StdMutex<Vec<Duration>>,
    began: Instant,
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Asked>) -> Self {
        Self {
            answers: StdMutex::new(answers.into_iter().collect()),
            asked: StdMutex::default(),
            began: Instant::now(),
        }
    }

    fn answer(&self) -> Asked {
        self.asked.lock().unwrap().push(self.began.elapsed());
        let answer = self.answers.lock().unwrap().pop_front();
        answer.unwrap_or_else(|| Asked::Later("nobody is there".to_owned()))
    }

    fn asked(&self) -> Vec<u64> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(Duration::as_secs).collect()
    }
}

async fn kept(script: &Script, news: impl AsyncFnMut()) -> String {
    let ask = async || script.answer();
    keep(script.began + LIFE, GRACE, ask, news).await
}

fn refused() -> Asked {
    Asked::Refused("no member".to_owned())
}

fn fenced() -> Asked {
    Asked::Lost(FENCED.to_owned())
}

fn later() -> Asked {
    Asked::Later("away".to_owned())
}

/// A lease of a whole life.
fn given() -> Asked {
    Asked::Has(LIFE)
}

#[tokio::test(start_paused = true)]
async fn renewed_at_half_of_its_life_until_it_is_fenced() {
    let script = Script::new([given(), given(), fenced()]);
    let why = kept(&script, pending::<()>).await;
    assert_eq!(why, FENCED);
    assert_eq!(script.asked(), [300, 600, 900]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_ends_nothing_before_the_grace_does() {
    let script = Script::new([later(), later(), later(), given()]);
    let why = kept(&script, pending::<()>).await;
    assert!(
        why.contains("no coordinator could renew it: nobody is there"),
        "{why}"
    );
    let asked = script.asked();
    // Soon again, at first; then renewed, and the next outage is outlived for as long as may be.
    assert_eq!(asked[..4], [300; 4]);
    assert!(
        (600..=601).contains(&asked[4]),
        "half of a life later, not {}",
        asked[4]
    );
    let ended = asked[asked.len() - 1];
    let limit = 300 + LIFE.as_secs() + GRACE.as_secs();
    assert!((limit..limit + 10).contains(&ended), "{ended}");
    let most = usize::try_from((ended - 600) / PAUSE_MAX.as_secs()).unwrap() + 20;
    assert!(asked.len() < most, "asked {} times", asked.len());
}

/// No coordinator is believed at once, and whoever is asked again right away says nothing new.
#[tokio::test(start_paused = true)]
async fn a_lease_is_taken_back_by_refusals_that_last() {
    let many = || (0..100).map(|_| refused());
    let script = Script::new(many());
    let why = kept(&script, pending::<()>).await;
    assert!(why.contains("has taken its lease back: no member"), "{why}");
    let asked = script.asked();
    let took = asked[asked.len() - 1] - asked[0];
    let least = PAUSE_MAX.as_secs() * u64::from(REFUSALS_MAX - 1);
    assert!((least..least + 10).contains(&took), "{asked:?}");

    // The same with news that come all the time.
    let script = Script::new(many());
    kept(&script, async || ()).await;
    let asked = script.asked();
    assert!(
        (least..least + 10).contains(&asked[asked.len() - 1]),
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn refusals_count_only_in_a_row() {
    // Whoever gives the lease has not taken it back.
    let each = || [refused(), given()].into_iter();
    let script = Script::new(each().chain(each()).chain(each()).chain([fenced()]));
    assert_eq!(kept(&script, pending::<()>).await, FENCED);
    assert_eq!(script.asked().len(), 7);

    // Whoever cannot answer has not confirmed what was said before.
    let each = || [refused(), refused(), later()].into_iter();
    let all = each().chain(each()).chain(each());
    let script = Script::new(all.chain([given(), fenced()]));
    assert_eq!(kept(&script, pending::<()>).await, FENCED);
    assert_eq!(script.asked().len(), 11);
}

#[tokio::test(start_paused = true)]
async fn news_are_looked_into_at_once_and_not_too_often() {
    let script = Script::new([given(), given(), given(), fenced()]);
    let why = kept(&script, async || ()).await;
    assert_eq!(why, FENCED);
    assert_eq!(script.asked(), [0, 1, 2, 3]);
}

#[test]
fn a_lease_without_a_life_is_not_asked_for_without_end() {
    assert_eq!(half(Duration::ZERO), RENEW_MIN);
    assert_eq!(half(LIFE), LIFE / 2);
}

#[tokio::test]
async fn what_is_missed_is_looked_into() {
    let (own, other) = (MeshKey([1; 32]), MeshKey([2; 32]));
    let sender = broadcast::Sender::new(1);
    let mut gone = sender.subscribe();
    sender.send(own).unwrap();
    taken_back(&mut gone, own).await;
    sender.send(other).unwrap();
    sender.send(other).unwrap();
    taken_back(&mut gone, own).await;
}
