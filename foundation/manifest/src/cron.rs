//! The five fields of a schedule: minute, hour, day of month, month, day of week, in UTC.

use std::fmt;

use crate::section::Wrong;
use crate::tree::Node;
use crate::value;

/// A valid schedule such as `0 3 * * *`; some date matches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron(String);

impl Cron {
    /// The five fields, with one space between them.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field {
        name: "minute",
        min: 0,
        max: 59,
        names: &[],
    },
    Field {
        name: "hour",
        min: 0,
        max: 23,
        names: &[],
    },
    Field {
        name: "day of month",
        min: 1,
        max: 31,
        names: &[],
    },
    Field {
        name: "month",
        min: 1,
        max: 12,
        names: &[
            "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
        ],
    },
    // 7 is Sunday as well, as in every crontab.
    Field {
        name: "day of week",
        min: 0,
        max: 7,
        names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    },
];

/// The most days that each month can have.
const MONTH_DAYS: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

const FIX: &str = "write minute, hour, day of month, month and day of week, such as \"0 3 * * *\"";

pub(crate) fn cron(node: &Node) -> Result<Cron, Wrong> {
    let text = value::text(node, "\"0 3 * * *\"")?;
    let parts: Vec<&str> = text.split_ascii_whitespace().collect();
    if parts.len() != FIELDS.len() {
        return Err(Wrong::new(
            format!("has {} fields, not 5", parts.len()),
            FIX,
        ));
    }
    let mut sets = [0u64; FIELDS.len()];
    for ((part, field), set) in parts.iter().zip(&FIELDS).zip(&mut sets) {
        *set = field.set(part)?;
    }
    let [_, _, days, months, _] = sets;
    // With both day fields given, either may match; so only the dates alone can be impossible.
    if parts[4] == "*" && !some_date(days, months) {
        return Err(Wrong::new("names a date that no year has", FIX));
    }
    Ok(Cron(parts.join(" ")))
}

fn some_date(days: u64, months: u64) -> bool {
    (1u32..).zip(MONTH_DAYS).any(|(month, last)| {
        months & (1 << month) != 0 && (1..=last).any(|day| days & (1 << day) != 0)
    })
}

impl Field {
    /// The values that match, one bit each.
    fn set(&self, text: &str) -> Result<u64, Wrong> {
        text.split(',')
            .try_fold(0, |set, item| Ok(set | self.item(item)?))
    }

    /// `*`, `a`, `a-b`, and each of `*` and `a-b` with `/step`.
    fn item(&self, item: &str) -> Result<u64, Wrong> {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (item, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (self.min, self.max),
            Some((first, last)) => (self.number(first)?, self.number(last)?),
            None if step.is_some() => return Err(self.wrong(item)),
            None => (self.number(range)?, self.number(range)?),
        };
        let step = match step {
            Some(step) => step
                .parse()
                .ok()
                .filter(|step| (1..=self.max).contains(step)),
            None => Some(1),
        };
        let step = step
            .and_then(|step| usize::try_from(step).ok())
            .ok_or_else(|| self.wrong(item))?;
        if first > last {
            return Err(self.wrong(item));
        }
        Ok((first..=last)
            .step_by(step)
            .fold(0, |set, value| set | 1 << value))
    }

    fn number(&self, text: &str) -> Result<u32, Wrong> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let named = || {
            self.names
                .iter()
                .zip(self.min..)
                .find(|(name, _)| name.eq_ignore_ascii_case(text))
        };
        let number = if digits {
            text.parse().ok()
        } else {
            named().map(|(_, number)| number)
        };
        number
            .filter(|number| (self.min..=self.max).contains(number))
            .ok_or_else(|| self.wrong(text))
    }

    fn wrong(&self, item: &str) -> Wrong {
        let item = crate::tree::shorten(item);
        Wrong::new(
            format!(
                "has {item:?} as {}, which takes {} to {}",
                self.name, self.min, self.max
            ),
            FIX,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Place;

    #[test]
    fn schedules() {
        let read = |text: &str| cron(&Node::text(Place::START, text));
        for good in [
            "0 3 * * *",
            "*/15 0-6/2 1,15 jan-mar MON-fri",
            "59 23 31 12 7",
            "0 0 29 2 *",
            "0 0 31 2 1",
        ] {
            assert_eq!(read(good).unwrap().as_str(), good);
        }
        assert_eq!(read(" 0  3 * *\t* ").unwrap().as_str(), "0 3 * * *");
        for bad in [
            "",
            "@daily",
            "0 3 * *",
            "0 3 * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "*/0 * * * *",
            "5-1 * * * *",
            "1/5 * * * *",
            "a * * * *",
            "1,,2 * * * *",
            "+1 * * * *",
            "-1 * * * *",
            "0 0 30 2 *",
            "0 0 31 4,jun *",
            "99999999999 * * * *",
            "* * * * sunday",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
