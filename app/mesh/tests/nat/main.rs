//! The NAT matrix: real namespaces, real NATs (veth and nftables), two endpoints and a relay. Each pair
//! is a test of its own, in a process of its own; what cannot run here says so by name. Run all in one
//! (`cargo test -p tabbify-mesh --test nat`), they print a table.
//!
//! `TABBIFY_TEST_LENGTH=long` has all pairs, else those that differ.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this file is the test runner: it talks to nextest and to people"
)]

mod ends;
mod hostile;
mod lab;
mod place;
mod wire;

use std::process::{Command, ExitCode};

use lab::{Kind, Lab};
use place::Unavailable;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const KINDS: [Kind; 7] = [
    Kind::Open,
    Kind::FullCone,
    Kind::Restricted,
    Kind::PortRestricted,
    Kind::Symmetric,
    Kind::Carrier,
    Kind::Blocked,
];
/// Those of the bounded version.
const PAIRS: [(Kind, Kind); 12] = [
    (Kind::Open, Kind::Open),
    (Kind::Open, Kind::Symmetric),
    (Kind::FullCone, Kind::PortRestricted),
    (Kind::Restricted, Kind::Restricted),
    (Kind::PortRestricted, Kind::PortRestricted),
    (Kind::PortRestricted, Kind::Symmetric),
    (Kind::Symmetric, Kind::Restricted),
    (Kind::Symmetric, Kind::Symmetric),
    (Kind::Carrier, Kind::PortRestricted),
    (Kind::Carrier, Kind::Symmetric),
    (Kind::Blocked, Kind::Open),
    (Kind::Six, Kind::Six),
];

/// A test: two hosts behind these, and what else is special.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    a: Kind,
    b: Kind,
    extra: Extra,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extra {
    Nothing,
    /// Both behind the same NAT, without hairpin.
    Beside,
    /// On a slow link that delays, loses and reorders.
    Impaired,
    /// The direct path breaks, and comes back.
    Broken,
    /// Far from each other; the round trips of the first request are counted.
    Far,
    /// The same without a relay: the address of the second is known.
    FarKnown,
    /// The first's NAT gives a port when it is asked (PCP).
    Mapped,
    /// The same, if it is asked over UPnP.
    Upnp,
    /// The first's NAT gives none, and means no good.
    Hostile,
}

impl Extra {
    const fn is_far(self) -> bool {
        matches!(self, Self::Far | Self::FarKnown)
    }

    /// Whether the NAT is asked for a port.
    const fn asks(self) -> bool {
        self.is_mapped() || matches!(self, Self::Hostile)
    }

    const fn is_mapped(self) -> bool {
        matches!(self, Self::Mapped | Self::Upnp)
    }
}

impl Case {
    const fn pair(a: Kind, b: Kind) -> Self {
        let extra = Extra::Nothing;
        Self { a, b, extra }
    }

    fn name(self) -> String {
        let pair = format!("{:?}_to_{:?}", self.a, self.b).to_lowercase();
        match self.extra {
            Extra::Nothing => pair,
            extra => format!("{pair}_{extra:?}").to_lowercase(),
        }
    }

    /// Whether a direct path can be had.
    fn is_direct(self) -> bool {
        let blocked = self.a == Kind::Blocked || self.b == Kind::Blocked;
        let both = self.a == Kind::Symmetric && self.b == Kind::Symmetric;
        let hopeless = both && !self.extra.is_mapped();
        !blocked && !hopeless
    }
}

fn cases() -> Vec<Case> {
    let is_long =
        tabbify_process::env::read("TABBIFY_TEST_LENGTH").is_some_and(|length| length == "long");
    let mut pairs: Vec<(Kind, Kind)> = PAIRS.to_vec();
    if is_long {
        for a in KINDS {
            pairs.extend(KINDS.map(|b| (a, b)));
        }
    }
    let mut cases: Vec<Case> = Vec::new();
    for (a, b) in pairs {
        let case = Case::pair(a, b);
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    let easy = Case::pair(Kind::PortRestricted, Kind::PortRestricted);
    for extra in [Extra::Beside, Extra::Impaired, Extra::Broken] {
        cases.push(Case { extra, ..easy });
    }
    let open = Case::pair(Kind::Open, Kind::Open);
    for extra in [Extra::Far, Extra::FarKnown] {
        cases.push(Case { extra, ..open });
    }
    let hopeless = Case::pair(Kind::Symmetric, Kind::Symmetric);
    for extra in [Extra::Mapped, Extra::Upnp, Extra::Hostile] {
        cases.push(Case { extra, ..hopeless });
    }
    cases
}

fn run(case: Case) -> Fallible<String> {
    let lab = match Lab::new(case.a, case.b, case.extra) {
        Ok(lab) => lab,
        Err(error) if error.is::<Unavailable>() => {
            return Ok(format!("NOT RUN: nat::{}: {error}", case.name()));
        }
        Err(error) => return Err(error),
    };
    let mut report = ends::run(&lab, case.is_direct(), case.extra)?;
    if let Some(hostile) = lab.hostile() {
        report.more = hostile.check()?;
    }
    Ok(report.row(&case.name()))
}

/// What libtest says to `--list`, and one test per call otherwise, as nextest wants it; all of them,
/// each in a process of its own, for `cargo test`.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--list") {
        // None of them is ignored.
        if !has("--ignored") {
            for case in cases() {
                println!("{}: test", case.name());
            }
        }
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let chosen = cases()
        .into_iter()
        .filter(|case| wanted.is_empty() || wanted.iter().any(|wanted| **wanted == case.name()));
    let chosen: Vec<Case> = chosen.collect();
    if let ([case], true) = (&chosen[..], has("--exact")) {
        if let Err(error) = place::isolate() {
            eprintln!("NOT RUN: nat::{}: no user namespace: {error}", case.name());
            return ExitCode::SUCCESS;
        }
        return match run(*case) {
            Ok(report) => {
                eprintln!("{report}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{}: {error}", case.name());
                ExitCode::FAILURE
            }
        };
    }
    eprintln!("{}", ends::Report::HEADER);
    let mut failed = 0;
    for case in chosen {
        let program = std::env::current_exe().expect("a program knows where it is");
        let status = Command::new(program)
            .args([&case.name(), "--exact"])
            .status();
        failed += i32::from(!status.is_ok_and(|status| status.success()));
    }
    std::process::exit(failed.min(1));
}
