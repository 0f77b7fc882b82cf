//! The choice: who has less gets more, who fails is left out for a while, and nobody is forgotten.

use super::*;

fn pool() -> State {
    State {
        apps: HashMap::new(),
        idle: 0,
        shelves: 0,
        dice: 7,
    }
}

fn app() -> AppId {
    "0191e7c2-1111-7222-8333-444455556666"
        .parse()
        .expect("an app's id")
}

fn of(numbers: std::ops::RangeInclusive<u32>) -> Replicas {
    Replicas::of(numbers.map(InstanceId))
}

/// Chooses `n` times and keeps every request under way; how many each instance has then.
fn chosen(state: &mut State, replicas: &Replicas, n: usize) -> Vec<usize> {
    let (mut loads, all) = (Vec::new(), Outstanding::default());
    let now = Instant::now();
    for _ in 0..n {
        let at = state.choose(app(), replicas, now);
        loads.push(Load::on(&state.shelf(app(), at).outstanding, &all));
    }
    let shelves = state.apps.get(&app()).map_or(&[][..], Vec::as_slice);
    let mut counts: Vec<(At, usize)> = shelves.iter().map(|it| (it.at, it.outstanding())).collect();
    counts.sort_unstable();
    counts.into_iter().map(|(_, count)| count).collect()
}

#[tokio::test]
async fn two_choices_keep_the_loads_even() {
    for n in 0..200 {
        let (first, second) = two_of(n % 9, u64::from_le_bytes(tabbify_process::random()));
        assert!(n % 9 < 2 || first != second && first < n % 9 && second < n % 9);
    }
    let counts = chosen(&mut pool(), &of(1..=2), 101);
    assert_eq!(counts.iter().sum::<usize>(), 101);
    assert!(
        counts.iter().all(|count| (50..=51).contains(count)),
        "{counts:?}"
    );
    // Of ten, chance alone would leave somebody with far more than the others.
    let counts = chosen(&mut pool(), &of(1..=10), 1000);
    assert!(
        counts.len() == 10 && counts.iter().all(|count| (90..=110).contains(count)),
        "{counts:?}"
    );
    assert_eq!(chosen(&mut pool(), &of(3..=3), 4), [4]);
    assert_eq!(chosen(&mut pool(), &Replicas::Unknown, 4), [4]);
}

#[tokio::test(start_paused = true)]
async fn who_fails_is_left_out_for_a_while() {
    let mut state = pool();
    let two = of(1..=2);
    let fail = |state: &mut State, n: u32| {
        let shelf = state.shelf(app(), Some(InstanceId(n)));
        shelf.failures += 1;
        shelf.shun(Instant::now());
    };
    fail(&mut state, 1);
    let one = Some(InstanceId(1));
    for _ in 0..50 {
        assert_ne!(state.choose(app(), &two, Instant::now()), one);
    }
    // With all of them left out, none is; and the only one there is, is asked in any case.
    fail(&mut state, 2);
    let mut seen: Vec<At> = (0..50)
        .map(|_| state.choose(app(), &two, Instant::now()))
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 2);
    assert_eq!(state.choose(app(), &of(1..=1), Instant::now()), one);

    // After a while one request finds out, and the others do not wait for what it finds.
    let mut state = pool();
    fail(&mut state, 1);
    fail(&mut state, 1);
    tokio::time::advance(SHUN_FIRST * 2).await;
    let all = Outstanding::default();
    let _busy: Vec<Load> = (0..9)
        .map(|_| Load::on(&state.shelf(app(), Some(InstanceId(2))).outstanding, &all))
        .collect();
    let mut tried = (0..50).filter(|_| state.choose(app(), &two, Instant::now()) == one);
    assert_eq!(tried.by_ref().count(), 1);
    // However often it failed, it is not left out for longer than so.
    for _ in 0..40 {
        fail(&mut state, 1);
    }
    tokio::time::advance(SHUN_MAX).await;
    assert_eq!(state.choose(app(), &two, Instant::now()), one);
}

#[tokio::test(start_paused = true)]
async fn one_connection_that_breaks_under_a_request_says_nothing_yet() {
    let mut state = pool();
    let (two, one) = (of(1..=2), Some(InstanceId(1)));
    let breaks = |state: &mut State| state.shelf(app(), one).break_off(Instant::now());
    let is_asked =
        |state: &mut State| (0..50).any(|_| state.choose(app(), &two, Instant::now()) == one);
    breaks(&mut state);
    assert!(is_asked(&mut state));
    breaks(&mut state);
    assert!(!is_asked(&mut state));
    // Between the two, an exchange came to its end.
    let mut state = pool();
    for _ in 0..9 {
        breaks(&mut state);
        state.shelf(app(), one).broke = false;
    }
    assert!(is_asked(&mut state));
}
