//! One machine from its boot to the moment when nothing of it is left.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tabbify_guest_init::order::{Start, Status, Stop};
use tabbify_guest_init::wire::Kind;
use tabbify_process::{Clock, Importance, Tasks};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::bound::Bound;
use crate::error::{Result, VmError};
use crate::guest::{Chunk, Exec, Guest, Phase};
use crate::machine::{App, Machine};
use crate::tail::Tail;
use crate::vmm::{Launched, Vmm};
use crate::way::way;

/// LIMIT: from the first instruction to our init. A guest without KVM on a busy host takes seconds.
const BOOT_WITHIN: Duration = Duration::from_secs(60);
/// LIMIT: from our init to the app's first instruction.
const START_WITHIN: Duration = Duration::from_secs(30);
/// LIMIT: from the end of the app to the end of the machine.
const RESET_WITHIN: Duration = Duration::from_secs(8);
/// LIMIT: how long the last output of what has ended is waited for.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);
/// LIMIT: addresses in a sentence on who listens: the guest may name thousands.
const LISTENERS_TOLD: usize = 8;
/// LIMIT: how long the guest may take to answer a question.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often it is asked whether the app listens: a fraction of what booting takes.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lines of the console that tell why a machine crashed.
const CONSOLE_LINES: usize = 5;

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The app did, by itself or by the signal it was sent.
    Exited {
        /// How.
        status: Status,
        /// The guest's kernel killed something for want of memory.
        out_of_memory: bool,
    },
    /// The app was not started: a sentence for its people.
    Failed(String),
    /// The guest's kernel or the monitor did: the end of what they said.
    Crashed {
        /// Lines of the console, in one.
        console: String,
    },
    /// It was ended from outside, without asking it.
    Killed,
}

/// A machine that runs. Dropping it ends it at once.
#[derive(Debug)]
pub struct Vm {
    guest: Guest,
    addresses: Vec<(u16, SocketAddr)>,
    /// Until somebody takes them.
    connections: Mutex<Option<mpsc::Receiver<DuplexStream>>>,
    kill: CancellationToken,
    ending: watch::Receiver<Option<Ending>>,
}

impl Vm {
    /// Boots `machine` and starts `app` in it. The receiver has what the app prints; it must be read,
    /// for a full one holds the app back, or dropped.
    ///
    /// # Errors
    /// Why there is no machine, or no app in it; then nothing is left of it.
    pub async fn boot(
        vmm: &dyn Vmm,
        machine: &Machine,
        app: App,
        clock: &dyn Clock,
        tasks: &Tasks,
    ) -> Result<(Self, mpsc::Receiver<Chunk>)> {
        let directory = Directory::make(&machine.directory)?;
        let launched = vmm.launch(machine, tasks).await?;
        let start = Start {
            process: app.process,
            hostname: app.hostname,
            network: launched.network,
            way_out: launched.way.is_some(),
            scratch_bytes: app.scratch.0,
            volume: app.volume,
            files: app.files,
            clock_ms: 0,
            entropy: Vec::new(),
        };
        let (vm, console, output) = Self::watched(launched, directory, tasks);
        match vm.start(start, clock).await {
            Ok(()) => Ok((vm, output)),
            Err(error) => {
                vm.kill.cancel();
                vm.wait().await;
                Err(match error {
                    VmError::Boot { why } => VmError::Boot {
                        why: with_console(why, &console),
                    },
                    other => other,
                })
            }
        }
    }

    fn watched(
        launched: Launched,
        directory: Directory,
        tasks: &Tasks,
    ) -> (Self, Tail, mpsc::Receiver<Chunk>) {
        let (guest, output) = Guest::talk(launched.control, tasks);
        let (over, ending) = watch::channel(None);
        let kill = tasks.token().child_token();
        let watcher = Watcher {
            process: launched.process,
            guest: guest.clone(),
            console: launched.console.clone(),
            kill: kill.clone(),
            directory,
        };
        tasks.spawn("microvm", Importance::Detached, async move {
            over.send_replace(Some(watcher.ending().await));
        });
        let vm = Self {
            guest,
            addresses: launched.addresses,
            connections: Mutex::new(launched.way.map(|port| way(port, tasks))),
            kill,
            ending,
        };
        (vm, launched.console, output)
    }

    async fn start(&self, mut start: Start, clock: &dyn Clock) -> Result<()> {
        let booted = self.guest.reaches(|phase| *phase == Phase::Booted);
        match tokio::time::timeout(BOOT_WITHIN, booted).await {
            Ok(Phase::Booted) => {}
            Ok(_) => return Err(boot("it ended")),
            Err(_) => return Err(boot("its kernel did not come up in 60 s")),
        }
        start.clock_ms = clock.now().millis();
        start.entropy = tabbify_process::random::<64>().to_vec();
        self.guest.order(Kind::Start, &start).await?;
        let started = self.guest.reaches(|phase| *phase == Phase::Started);
        match tokio::time::timeout(START_WITHIN, started).await {
            // An app may have ended before anybody looked: that is how it ended, and no failure of ours.
            Ok(Phase::Started | Phase::Ended(_)) => Ok(()),
            Ok(Phase::Failed(why)) => Err(VmError::App(why)),
            Ok(_) => Err(boot("it ended")),
            Err(_) => Err(boot("the app did not start in 30 s")),
        }
    }

    /// Where the host reaches a port of the guest; `None` if it was not among the machine's.
    #[must_use]
    pub fn address(&self, port: u16) -> Option<SocketAddr> {
        let mut addresses = self.addresses.iter();
        addresses
            .find(|(of, _)| *of == port)
            .map(|(_, address)| *address)
    }

    /// The connections of its programs to the outside, for whoever lets them out, once; `None` without a way
    /// out. While nobody has them, programs wait.
    #[must_use]
    pub fn connections(&self) -> Option<mpsc::Receiver<DuplexStream>> {
        let kept = self.connections.lock();
        kept.unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The addresses that somebody in the guest listens on, as its own kernel has them: whether the app
    /// is up, and where it listens if not on its port. A connection to [`Vm::address`] proves neither,
    /// since the monitor takes it before it asks the guest.
    ///
    /// # Errors
    /// [`VmError::Over`]; [`VmError::Silent`] if the guest does not answer.
    pub async fn listeners(&self) -> Result<Vec<SocketAddr>> {
        let asked = tokio::time::timeout(ANSWER_WITHIN, self.guest.listeners());
        asked.await.unwrap_or(Err(VmError::Silent))
    }

    /// Waits until somebody in the guest listens on one of the machine's ports, and gives where the host
    /// reaches it. Nobody should connect before: the monitor would take the connection, ask a guest that
    /// does not answer, and ask again seconds later only.
    ///
    /// # Errors
    /// [`VmError::NotListening`] with what listens instead; [`VmError::Over`], [`VmError::Silent`].
    pub async fn listening(&self, port: u16, within: Duration) -> Result<SocketAddr> {
        let end = tokio::time::Instant::now() + within;
        loop {
            let listeners = self.listeners().await?;
            let reached = |found: &&SocketAddr| found.port() == port && !found.ip().is_loopback();
            let found = listeners.iter().find(reached);
            if let (Some(_), Some(address)) = (found, self.address(port)) {
                return Ok(address);
            }
            if tokio::time::Instant::now() >= end {
                let told = listeners.iter().take(LISTENERS_TOLD);
                let list: Vec<String> = told.map(ToString::to_string).collect();
                return Err(VmError::NotListening {
                    port,
                    within,
                    elsewhere: match list.as_slice() {
                        [] => "nothing in it listens".to_owned(),
                        list => format!("it listens on {}", list.join(", ")),
                    },
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Starts a program beside the app, as its user and with its environment.
    ///
    /// # Errors
    /// [`VmError::Over`], [`VmError::TooLong`]. What the guest refuses is said by [`Exec::end`].
    pub async fn exec(&self, command: Vec<String>) -> Result<Exec> {
        self.guest.exec(command).await
    }

    /// Waits until it is over and nothing is left of it.
    pub async fn wait(&self) -> Ending {
        let mut ending = self.ending.clone();
        let over = ending.wait_for(Option::is_some).await;
        over.ok()
            .and_then(|ending| ending.clone())
            .unwrap_or(Ending::Killed)
    }

    /// Asks the app to end with `signal`, kills it after `grace`, and ends the machine if its guest
    /// does not do so.
    pub async fn stop(&self, signal: i32, grace: Duration) -> Ending {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let stop = async {
            let order = Stop { signal, grace_ms };
            // A guest that does not listen is one that is killed.
            let _ = self.guest.order(Kind::Stop, &order).await;
            self.wait().await
        };
        let within = grace.saturating_add(RESET_WITHIN + LAST_WORDS_WITHIN);
        match tokio::time::timeout(within, stop).await {
            Ok(ending) => ending,
            Err(_) => self.kill().await,
        }
    }

    /// Ends it at once.
    pub async fn kill(&self) -> Ending {
        self.kill.cancel();
        self.wait().await
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

fn boot(why: &str) -> VmError {
    VmError::Boot {
        why: why.to_owned(),
    }
}

fn with_console(why: String, console: &Tail) -> String {
    match console.reason(CONSOLE_LINES) {
        lines if lines.is_empty() => why,
        lines => format!("{why}. Its console: {lines}"),
    }
}

/// Sees a machine to its end.
struct Watcher {
    process: Bound,
    guest: Guest,
    console: Tail,
    kill: CancellationToken,
    directory: Directory,
}

impl Watcher {
    async fn ending(self) -> Ending {
        let ended = async {
            let status = self.process.ended().await;
            tracing::debug!(%status, "the monitor of a machine has ended");
        };
        tokio::select! {
            () = ended => {}
            () = self.kill.cancelled() => self.process.kill(),
            _ = self.guest.reaches(Phase::is_last) => {
                let reset = self.process.ended();
                if tokio::time::timeout(RESET_WITHIN, reset).await.is_err() {
                    self.process.kill();
                }
            }
        }
        self.process.ended().await;
        // What it said before its end may still be on the way.
        let last = self.guest.reaches(Phase::is_last);
        let last = tokio::time::timeout(LAST_WORDS_WITHIN, last).await;
        let ending = match last.unwrap_or_else(|_| self.guest.phase()) {
            Phase::Ended(end) => Ending::Exited {
                status: end.status,
                out_of_memory: end.out_of_memory,
            },
            Phase::Failed(why) => Ending::Failed(why),
            _ if self.kill.is_cancelled() => Ending::Killed,
            Phase::Booting | Phase::Booted | Phase::Started | Phase::Gone => {
                self.console.whole(LAST_WORDS_WITHIN).await;
                let console = self.console.reason(CONSOLE_LINES);
                Ending::Crashed { console }
            }
        };
        drop(self.directory);
        ending
    }
}

/// A machine's directory, removed with this.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn make(path: &Path) -> Result<Self> {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(VmError::io("remove", path)(error));
            }
            _ => {}
        }
        tabbify_process::files::private_dir(path).map_err(VmError::io("make", path))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(directory = %self.0.display(), %error, "a machine's directory stays");
        }
    }
}
