//! Runs the text scripts in `tests/plan`: lines that begin at the margin are commands, indented
//! ones are what `plan` answered. `UPDATE_EXPECT=1` writes the answers anew.

mod world;

use std::fmt::Write as _;
use std::path::Path;

use expect_test::expect_file;
use tabbify_api::runner::ExitRecord;
use tabbify_types::event::v1::{
    AppHealthy, AppIdled, AppStarting, AppStopRequested, AppStopped, AppWoken, InstanceDrained,
};
use tabbify_types::{AppId, Event};

use super::*;
use crate::report::Status;
use crate::state::tests::{Story, app, failed, of, placement, started};

const KEY: MeshKey = MeshKey([7; 32]);

fn fresh(life: Life) -> Observed {
    Observed {
        life,
        starting_for: Duration::ZERO,
        drain: Drain::Untried,
        unspawnable: None,
        failure: None,
        quarantined: false,
        busy: false,
        told_for: None,
        is_wanted: false,
        is_visited: false,
    }
}

/// The state that a script works on.
struct Script {
    now: Timestamp,
    story: Story,
    observed: BTreeMap<InstanceRef, Observed>,
}

impl Script {
    fn new() -> Self {
        Self {
            now: Timestamp::from_secs(1_000),
            story: Story::new(),
            observed: BTreeMap::new(),
        }
    }

    /// Runs one command; what it prints.
    fn run(&mut self, line: &str) -> Result<String, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (command, rest) = words.split_first().ok_or("an empty line")?;
        match (*command, rest) {
            ("#", _) => {}
            ("wait", [span]) => self.now = self.now.plus(duration(span)?),
            ("clock", [secs]) => self.now = Timestamp::from_secs(number(secs)?),
            ("place", [name, options @ ..]) => self.place(name, options)?,
            ("stop", [name, drain]) => {
                let drain_ms = u64::try_from(duration(drain)?.as_millis()).unwrap_or(u64::MAX);
                let of = instance(name)?;
                self.fold(&Event::from(AppStopRequested { of, drain_ms }));
            }
            ("said", [name, what]) => {
                let event = said(instance(name)?, what)?;
                self.fold(&event);
            }
            ("see", [name, "gone"]) => {
                self.observed.remove(&instance(name)?);
            }
            ("see", [name, "restart"]) => {
                let seen = self.seen(name)?;
                let alive = matches!(seen.life, Life::Alive(_));
                let life = if alive {
                    Life::Alive(Control::Unwatched)
                } else {
                    seen.life.clone()
                };
                *seen = fresh(life);
            }
            ("see", [name, what, options @ ..]) => {
                let life = life(what)?;
                let seen = self.observed.entry(instance(name)?);
                let seen = seen.or_insert_with(|| fresh(Life::Unborn));
                seen.life = life;
                if let [span] = options {
                    seen.starting_for = duration(span)?;
                }
            }
            ("note", [name, what, options @ ..]) => note(self.seen(name)?, what, options)?,
            ("plan", []) => return Ok(self.plan()),
            _ => return Err(format!("no such command: {line}")),
        }
        Ok(String::new())
    }

    fn fold(&mut self, event: &Event) {
        self.story.fold(self.now, event);
    }

    fn place(&mut self, name: &str, options: &[&str]) -> Result<(), String> {
        let mut order = placement(instance(name)?, 1);
        for option in options {
            match option.split_once('=') {
                Some(("deploy", deploy)) => {
                    order.deploy = placement(instance(name)?, number(deploy)?).deploy;
                }
                Some(("idle", after)) => {
                    let millis = duration(after)?.as_millis();
                    order.run.idle_after_ms = u64::try_from(millis).ok();
                }
                Some(("within", within)) => {
                    let millis = duration(within)?.as_millis();
                    order.run.healthy_within_ms = u64::try_from(millis).unwrap_or(u64::MAX);
                }
                _ => return Err(format!("no such option: {option}")),
            }
        }
        self.fold(&Event::from(order));
        Ok(())
    }

    fn seen(&mut self, name: &str) -> Result<&mut Observed, String> {
        let found = self.observed.get_mut(&instance(name)?);
        found.ok_or_else(|| format!("{name} was not seen"))
    }

    fn plan(&self) -> String {
        let plan = plan(&self.story.desired, &self.observed, self.now);
        let mut text = String::new();
        for action in &plan.actions {
            let of = action.of();
            let name = letter(of.app);
            writeln!(text, "    {name}/{} {action}", of.instance).unwrap();
        }
        if let Some(span) = plan.wake_in {
            writeln!(text, "    look again in {span:?}").unwrap();
        }
        if text.is_empty() {
            text.push_str("    nothing\n");
        }
        text
    }
}

fn note(seen: &mut Observed, what: &str, options: &[&str]) -> Result<(), String> {
    match (what, options) {
        ("busy", []) => seen.busy = true,
        ("free", []) => seen.busy = false,
        ("quarantined", []) => seen.quarantined = true,
        ("told", [span]) => seen.told_for = Some(duration(span)?),
        ("untold", []) => seen.told_for = None,
        ("wanted", []) => seen.is_wanted = true,
        ("unwanted", []) => seen.is_wanted = false,
        ("visited", []) => seen.is_visited = true,
        ("broken", why) => {
            seen.failure = Some(Failure {
                reason: FailureReason::NotAComponent,
                detail: why.join(" "),
            });
        }
        ("undrained", []) => seen.drain = Drain::Refused,
        ("drained", [finished, cut]) => {
            let (finished, cut) = (number(finished)?, number(cut)?);
            seen.drain = Drain::Done { finished, cut };
        }
        ("unspawnable", why) => seen.unspawnable = Some(why.join(" ")),
        _ => return Err(format!("no such note: {what}")),
    }
    Ok(())
}

fn said(of: InstanceRef, what: &str) -> Result<Event, String> {
    Ok(match what {
        "starting" => Event::from(AppStarting { of }),
        "started" => started(of),
        "healthy" => Event::from(AppHealthy { of }),
        "idled" => Event::from(AppIdled { of }),
        "woken" => Event::from(AppWoken {
            of,
            key: Some(KEY),
            secrets: BTreeMap::new(),
        }),
        "drained" => Event::from(InstanceDrained {
            of,
            finished: 0,
            cut: 0,
        }),
        "failed" => failed(of),
        "stopped" => Event::from(AppStopped { of }),
        _ => return Err(format!("no such report: {what}")),
    })
}

fn life(what: &str) -> Result<Life, String> {
    let killed = End {
        status: Some(Status::Signal(9)),
        ..End::default()
    };
    Ok(match what {
        "unborn" => Life::Unborn,
        "dead" => Life::Dead(End::default()),
        "killed" => Life::Dead(killed),
        "ended" => Life::Dead(clean()),
        "unwatched" => Life::Alive(Control::Unwatched),
        "connecting" => Life::Alive(Control::Connecting),
        "unreachable" => Life::Alive(Control::Unreachable),
        "starting" => Life::Alive(Control::Starting),
        "ready" => Life::Alive(Control::Ready {
            key: KEY,
            secrets: BTreeMap::new(),
        }),
        "idle" => Life::Alive(Control::Idle {
            key: KEY,
            secrets: BTreeMap::new(),
        }),
        "draining" => Life::Alive(Control::Draining),
        "broken" => Life::Alive(Control::Failed),
        _ => return Err(format!("no such life: {what}")),
    })
}

/// The end of a runner that was told to end.
fn clean() -> End {
    let exit = ExitRecord {
        code: 0,
        failure: None,
        at: Timestamp::default(),
    };
    End {
        exit: Some(exit),
        ..End::default()
    }
}

/// `a/1`: instance 1 of app a.
fn instance(name: &str) -> Result<InstanceRef, String> {
    let (app, instance) = name.split_once('/').ok_or("an instance is a/1")?;
    let [letter @ b'a'..=b'z'] = app.as_bytes() else {
        return Err(format!("no such app: {app}"));
    };
    Ok(of(*letter, number(instance)?))
}

fn letter(id: AppId) -> char {
    let letter = (b'a'..=b'z').find(|letter| app(*letter) == id);
    letter.map_or('?', char::from)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("not a number: {text}"))
}

fn duration(text: &str) -> Result<Duration, String> {
    let secs = text.strip_suffix('s').ok_or("a duration is 5s")?;
    Ok(Duration::from_secs_f64(number(secs)?))
}

fn check(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let mut script = Script::new();
    let mut actual = String::new();
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("    ") {
            continue;
        }
        writeln!(actual, "{line}").unwrap();
        if line == "----" {
            script = Script::new();
        } else if !line.is_empty() {
            match script.run(line) {
                Ok(printed) => actual.push_str(&printed),
                Err(error) => panic!("{}:{}: {error}", path.display(), index + 1),
            }
        }
    }
    expect_file![path].assert_eq(&actual);
}

#[test]
fn scripts() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan");
    let mut ran = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        check(&entry.unwrap().path());
        ran += 1;
    }
    assert!(ran >= 5, "{ran} scripts");
}

#[test]
fn backoff_doubles_to_its_limit() {
    let placement = crate::state::tests::placed(1, 1).event;
    let mut last = Duration::ZERO;
    for failures in 1..=u32::from(u8::MAX) {
        let delay = backoff_after(failures, placement);
        assert!(
            delay >= BACKOFF_MIN && delay >= last,
            "{failures}: {delay:?}"
        );
        assert!(delay <= BACKOFF_MAX * 5 / 4, "{failures}: {delay:?}");
        last = delay;
    }
    assert!(last >= BACKOFF_MAX);
    assert!(backoff_after(u32::MAX, placement) >= BACKOFF_MAX);
}
