//! Figures: medians, spreads, and the list of DESIGN section 16.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

/// One line of the table, as the list has it.
#[derive(Debug, Serialize)]
struct Row {
    metric: String,
    unit: &'static str,
    ours: f64,
    peer: Option<f64>,
    peer_name: Option<String>,
    ratio: Option<f64>,
    aim: Option<String>,
    holds: Option<bool>,
    /// Only for people.
    #[serde(skip)]
    spread: String,
}

/// What an aim compares.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Aim {
    /// Ours is at least so many times the peer's.
    Times(f64),
    /// Ours is at most the peer's and so much more.
    More(f64),
    /// There is none: a figure beside another.
    None,
}

#[derive(Debug, Default)]
pub(crate) struct Rows {
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// One figure for each turn.
pub(crate) type Turns = Vec<f64>;

impl Rows {
    /// Something that whoever reads the figures must know. Shown at once and again at the end.
    pub(crate) fn note(&mut self, note: &str) {
        println!("   {note}");
        self.notes.push(note.to_owned());
    }

    /// A figure beside a peer's, turn by turn.
    pub(crate) fn pair(
        &mut self,
        metric: &str,
        unit: &'static str,
        ours: &Turns,
        peer: (&str, &Turns),
        aim: Aim,
    ) {
        let ratios: Turns = ours.iter().zip(peer.1).map(|(o, p)| o / p).collect();
        let (ours_median, peer_median, ratio) = (median(ours), median(peer.1), median(&ratios));
        let (aim_text, holds) = match aim {
            Aim::Times(times) => (Some(format!("≥ {times}×")), Some(ratio >= times)),
            Aim::More(more) => {
                let over: Turns = ours.iter().zip(peer.1).map(|(o, p)| o - p).collect();
                (
                    Some(format!("≤ peer + {more} {unit}")),
                    Some(median(&over) <= more),
                )
            }
            Aim::None => (None, None),
        };
        self.push(Row {
            metric: metric.to_owned(),
            unit,
            ours: ours_median,
            peer: Some(peer_median),
            peer_name: Some(peer.0.to_owned()),
            ratio: Some(ratio),
            aim: aim_text,
            holds,
            spread: format!(
                "ours {}, peer {}, ratio {}",
                span(ours),
                span(peer.1),
                span(&ratios)
            ),
        });
    }

    /// A figure alone: information.
    pub(crate) fn alone(
        &mut self,
        metric: &str,
        unit: &'static str,
        ours: &Turns,
        aim: Option<&str>,
    ) {
        self.push(Row {
            metric: metric.to_owned(),
            unit,
            ours: median(ours),
            peer: None,
            peer_name: None,
            ratio: None,
            aim: aim.map(str::to_owned),
            holds: None,
            spread: span(ours),
        });
    }

    fn push(&mut self, row: Row) {
        println!("   {}", line(&row));
        self.rows.push(row);
    }

    pub(crate) fn print(&self) {
        println!();
        for note in &self.notes {
            println!("{note}");
        }
        println!();
        for row in &self.rows {
            println!("{}", line(row));
            println!("      {}", row.spread);
        }
    }

    /// The list, for programs.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, serde_json::to_vec_pretty(&self.rows)?)?;
        Ok(())
    }
}

fn line(row: &Row) -> String {
    let figure = |figure: f64| match figure {
        figure if figure >= 1_000.0 => format!("{figure:.0}"),
        figure => format!("{figure:.2}"),
    };
    let peer = match (&row.peer_name, row.peer, row.ratio) {
        (Some(name), Some(peer), Some(ratio)) => {
            format!(" · {name} {} · {ratio:.2}×", figure(peer))
        }
        _ => String::new(),
    };
    let aim = row.aim.as_ref().map(|aim| format!(" · aim {aim}"));
    let holds = match row.holds {
        Some(true) => " ✓",
        Some(false) => " ✗",
        None => "",
    };
    let (metric, ours, unit) = (&row.metric, figure(row.ours), row.unit);
    format!(
        "{metric}: {ours} {unit}{peer}{}{holds}",
        aim.unwrap_or_default()
    )
}

/// From the least to the greatest.
fn span(turns: &Turns) -> String {
    let least = turns.iter().copied().fold(f64::INFINITY, f64::min);
    let most = turns.iter().copied().fold(0.0, f64::max);
    format!("{least:.2} to {most:.2} in {}", turns.len())
}

pub(crate) fn median(turns: &Turns) -> f64 {
    let mut sorted = turns.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// Times, to be asked for a part of them.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    /// The time in microseconds that this many of a thousand do not exceed.
    pub(crate) fn micros(&mut self, of_thousand: usize) -> f64 {
        self.0.sort_unstable();
        let at = (self.0.len() * of_thousand / 1_000).min(self.0.len().saturating_sub(1));
        self.0
            .get(at)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }
}
