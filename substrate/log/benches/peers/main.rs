//! The log beside what people would run instead: the same payload, the same machine, the same
//! minutes, one after the other in turns. `cargo xtask bench log` runs it and prints the table.
//!
//! Every peer is Debian's, started here in a directory of its own, told to sync every write where it
//! can. Clients of all are in this process; the log is served by another process of this program,
//! with tokens, chain, conditions, ids and rates as in production.
#![expect(clippy::print_stdout, reason = "a program for people")]

mod append;
mod disk;
mod live;
mod nats;
mod ours;
mod postgres;
mod process;
mod read;
mod redis;
mod rows;
mod start;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use rows::Rows;

/// What to measure, in this order.
const SECTIONS: [&str; 4] = ["append", "live", "read", "start"];

/// How it was called.
struct Arguments {
    out: Option<PathBuf>,
    sections: Vec<String>,
    /// Of one turn of one peer.
    seconds: u64,
    rounds: usize,
    /// Events of the log that is read and started.
    events: u64,
}

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let mut arguments = Arguments {
        out: None,
        sections: Vec::new(),
        seconds: 3,
        rounds: 3,
        events: 10_000_000,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{word} needs a value"))
        };
        match &*word {
            "--out" => arguments.out = Some(value()?.into()),
            "--only" => arguments.sections.push(value()?),
            "--seconds" => arguments.seconds = value()?.parse()?,
            "--rounds" => arguments.rounds = value()?.parse()?,
            "--events" => arguments.events = value()?.parse()?,
            // The other ends of a measurement: processes of their own.
            "serve" => return runtime.block_on(ours::serve(value()?.as_ref())),
            "fill" => {
                let (dir, count) = (value()?, value()?.parse()?);
                return runtime.block_on(ours::fill(dir.as_ref(), count));
            }
            other => bail!("{other} is not known: --out --only --seconds --rounds --events"),
        }
    }
    if arguments.sections.is_empty() {
        arguments.sections = SECTIONS.map(str::to_owned).to_vec();
    }
    runtime.block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let mut rows = Rows::default();
    rows.note(&format!("machine: {}", process::machine()));
    rows.note(&format!("pressure before: {}", process::pressure()));
    for section in &arguments.sections {
        match &**section {
            "append" => append::measure(arguments, &mut rows).await?,
            "live" => live::measure(arguments, &mut rows).await?,
            "read" => read::measure(arguments, &mut rows).await?,
            "start" => start::measure(arguments, &mut rows).await?,
            other => bail!("{other} is no section: {}", SECTIONS.join(", ")),
        }
    }
    rows.note(&format!("pressure after: {}", process::pressure()));
    rows.print();
    match &arguments.out {
        Some(path) => rows.write(path),
        None => Ok(()),
    }
}
