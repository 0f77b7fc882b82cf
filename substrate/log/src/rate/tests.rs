//! Buckets over invented moments: nothing here waits.

use proptest::prelude::*;

use super::*;

const RATES: Rates = Rates {
    events_per_second: 100,
    events_burst: 4_000,
    bytes_per_second: 1_000_000,
    bytes_burst: 16_000_000,
};

fn meters() -> Meters {
    Meters {
        rates: RATES,
        tenants: Mutex::default(),
    }
}

fn cost(tenant: &str, events: u32, bytes: u32) -> (Tenant, Cost) {
    let cost = Cost {
        events: f64::from(events),
        bytes: f64::from(bytes),
    };
    (tenant.parse().expect("a tenant's slug"), cost)
}

fn wait(answer: Result<(), AppendError>) -> u64 {
    match answer {
        Err(AppendError::Rate { retry_after_ms, .. }) => retry_after_ms,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_burst_then_the_rate_and_the_wait_is_true() {
    let (meters, now) = (meters(), Instant::now());
    let thousand = [cost("a", 1_000, 10)];
    for _ in 0..3 {
        meters.charge(&thousand, false, now).unwrap();
    }
    // What is left is the platform's.
    let ms = wait(meters.charge(&thousand, false, now));
    assert_eq!(ms, 10_000);
    let almost = now + Duration::from_millis(ms - 1);
    assert_eq!(wait(meters.charge(&thousand, false, almost)), 1);
    let then = now + Duration::from_millis(ms);
    meters.charge(&thousand, false, then).unwrap();
    // Another tenant has its own.
    meters.charge(&[cost("b", 3_000, 0)], false, now).unwrap();
    // However long the pause, no more than a burst.
    let later = then + Duration::from_secs(1_000_000);
    meters.charge(&[cost("a", 3_000, 0)], false, later).unwrap();
    assert_eq!(wait(meters.charge(&[cost("a", 1, 0)], false, later)), 10);
}

#[test]
fn bytes_count_as_events_do() {
    let (meters, now) = (meters(), Instant::now());
    for _ in 0..3 {
        meters
            .charge(&[cost("a", 1, 4_000_000)], false, now)
            .unwrap();
    }
    assert_eq!(
        wait(meters.charge(&[cost("a", 1, 4_000_000)], false, now)),
        4_000
    );
}

#[test]
fn the_reserve_is_for_the_platform_and_ends_too() {
    let (meters, now) = (meters(), Instant::now());
    meters.charge(&[cost("a", 3_000, 0)], false, now).unwrap();
    wait(meters.charge(&[cost("a", 1, 0)], false, now));
    meters.charge(&[cost("a", 1_000, 0)], true, now).unwrap();
    assert_eq!(wait(meters.charge(&[cost("a", 1, 0)], true, now)), 10);
    // What flows in is the platform's first.
    let then = now + Duration::from_secs(1);
    wait(meters.charge(&[cost("a", 1, 0)], false, then));
    meters.charge(&[cost("a", 100, 0)], true, then).unwrap();
}

#[test]
fn a_batch_over_two_tenants_is_charged_to_both_or_to_none() {
    let (meters, now) = (meters(), Instant::now());
    meters.charge(&[cost("b", 3_000, 0)], false, now).unwrap();
    let both = [cost("a", 3_000, 0), cost("b", 1, 0)];
    wait(meters.charge(&both, false, now));
    meters.charge(&[cost("a", 3_000, 0)], false, now).unwrap();
}

#[test]
fn tenants_are_forgotten_when_they_have_rested() {
    let (meters, now) = (meters(), Instant::now());
    for n in 0..TENANTS_MAX {
        let name = format!("t{n}");
        meters.charge(&[cost(&name, 1, 0)], false, now).unwrap();
    }
    let later = now + Duration::from_secs(1);
    meters.charge(&[cost("new", 1, 0)], false, later).unwrap();
    assert_eq!(meters.tenants.lock().unwrap().len(), 1);
}

proptest! {
    /// Over any time, no more than a burst and what has flowed in.
    #[test]
    fn never_more_than_the_rate(steps in prop::collection::vec((0..2_000u64, 1..1_000u32, any::<bool>()), 1..100)) {
        let (meters, start) = (meters(), Instant::now());
        let (mut now, mut taken) = (start, 0.0);
        for (ms, events, of_platform) in steps {
            now += Duration::from_millis(ms);
            if meters.charge(&[cost("a", events, 0)], of_platform, now).is_ok() {
                taken += f64::from(events);
            }
            let flowed = (now - start).as_secs_f64() * 100.0;
            prop_assert!(taken <= 4_000.0 + flowed + 1e-6);
        }
    }
}
