//! Whole lives of a log by chance: writers that repeat and contradict themselves, readers that are
//! slow, a consumer whose members fail, and a disk that fills up, fails, and loses power, also within
//! recovery; against the model, at every step.
//!
//! One seed is one life, the same every time. A failure names its seed, and [`SEED`] plays only that
//! one, with everything that happens in it printed.

mod consumer;
mod readers;
mod world;

use std::fmt;

use tabbify_process::env;
use tokio::runtime::Builder;

use super::random::Random;
use super::{Wrong, long};
use world::World;

/// Plays this one life instead of the usual ones.
const SEED: &str = "TABBIFY_LOG_SEED";
/// Lives in one run, over all tests of this module.
const LIVES: u64 = 1_000;
/// Tests that share the lives, so that every processor has something to do.
const SHARES: u64 = 4;
/// The long version plays so many times more, with seeds that no run has had.
const LONG_TIMES: u64 = 50;
/// Steps of one life.
const STEPS: u64 = 80;

/// What happens in a life, to compare and to print.
#[derive(Default)]
struct Transcript {
    hasher: blake3::Hasher,
    aloud: bool,
}

impl Transcript {
    fn add(&mut self, line: &dyn fmt::Debug) {
        let line = format!("{line:?}");
        self.hasher.update(line.as_bytes());
        if self.aloud {
            println!("{}", line.chars().take(300).collect::<String>());
        }
    }
}

/// One life; answers a hash of everything that happened.
fn live(seed: u64, aloud: bool) -> Result<[u8; 32], Wrong> {
    // Time passes only while nothing else can happen.
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    runtime.block_on(async {
        let transcript = Transcript {
            aloud,
            ..Transcript::default()
        };
        let mut world = World::new(Random::new(seed), transcript).await?;
        for _ in 0..STEPS {
            world.step().await?;
        }
        world.end().await
    })
}

fn lives(share: u64) {
    if let Some(seed) = env::read(SEED) {
        let seed = seed.parse().expect("a seed is a number");
        if share == 0 {
            live(seed, true).unwrap();
        }
        return;
    }
    let (first, count) = if long() {
        (Random::new(share).next() ^ fresh(), LIVES * LONG_TIMES)
    } else {
        (share * LIVES / SHARES, LIVES)
    };
    for n in 0..count / SHARES {
        let seed = first.wrapping_add(n);
        if let Err(wrong) = live(seed, false) {
            panic!("{wrong}\nto see it again: {SEED}={seed}");
        }
    }
}

fn fresh() -> u64 {
    u64::from_le_bytes(tabbify_process::random())
}

#[test]
fn a_thousand_lives_first_quarter() {
    lives(0);
}

#[test]
fn a_thousand_lives_second_quarter() {
    lives(1);
}

#[test]
fn a_thousand_lives_third_quarter() {
    lives(2);
}

#[test]
fn a_thousand_lives_last_quarter() {
    lives(3);
}

#[test]
fn the_same_seed_is_the_same_life() {
    for seed in 0..20 {
        let (one, other) = (live(seed, false).unwrap(), live(seed, false).unwrap());
        assert_eq!(one, other, "seed {seed}");
        assert_ne!(one, live(seed + 1, false).unwrap(), "seed {seed}");
    }
}
