//! What is going on, on standard error: moving bars on a terminal, plain lines elsewhere, nothing
//! with `--json`.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often a bar moves.
const TICK: Duration = Duration::from_millis(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Silent,
    Lines,
    Bars,
}

/// Tells a person what is going on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress(Mode);

/// Something that takes a while; gone from the screen when dropped.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    mode: Mode,
}

impl Progress {
    pub(crate) fn new(json: bool) -> Self {
        Self(match (json, io::stderr().is_terminal()) {
            (true, _) => Mode::Silent,
            (false, true) => Mode::Bars,
            (false, false) => Mode::Lines,
        })
    }

    /// Something is done: `✓ built  18.2 s`.
    pub(crate) fn done(self, what: &str) {
        self.say(&format!("✓ {what}"));
    }

    /// A line of our own.
    pub(crate) fn say(self, line: &str) {
        if self.0 != Mode::Silent {
            print(line);
        }
    }

    /// Begins something of unknown length.
    pub(crate) fn spinner(self, what: &str) -> Bar {
        self.bar(what, ProgressBar::no_length(), "{spinner} {msg} {elapsed}")
    }

    /// Begins a transfer of `len` bytes.
    pub(crate) fn transfer(self, what: &str, len: u64) -> Bar {
        let template = "{spinner} {msg} [{wide_bar}] {decimal_bytes}/{decimal_total_bytes} {eta}";
        self.bar(what, ProgressBar::new(len), template)
    }

    fn bar(self, what: &str, bar: ProgressBar, template: &str) -> Bar {
        if self.0 == Mode::Bars {
            let style = ProgressStyle::with_template(template).expect("our templates are valid");
            bar.set_style(style);
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(TICK);
        } else {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        Bar { bar, mode: self.0 }
    }
}

impl Bar {
    /// The transfer has come this far.
    pub(crate) fn at(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// A line of something else, such as a build's output, above the bar.
    pub(crate) fn line(&self, line: &str) {
        match self.mode {
            Mode::Silent => {}
            Mode::Lines => print(line),
            Mode::Bars => self.bar.println(line),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// With standard error gone there is nobody to tell, and the work goes on.
fn print(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
