//! The manifest with every default filled in: the only form that anything runs from.

use std::collections::BTreeMap;
use std::time::Duration;

use tabbify_types::event::v1::{
    Access, DeployTarget, ImageConfig, ImagePort, Machines, Placement, RunConfig, RuntimeKind,
    SecretDelivery, SecretUse, SnapshotEvery, VolumeUse,
};
use tabbify_types::{AppId, AppName, ByteSize};

use crate::Egress;
use crate::init::Detected;
use crate::manifest::{
    Build, Command, Cpus, Delivery, Events, Lifecycle, Manifest, Port, Schedule, Secret, Snapshots,
    Supervisor, Volume,
};
use crate::problem::{ManifestErrors, Problems};
use crate::support::not_supported_yet;
use crate::tree::Place;

/// The name under which `tcli` uploads a component, whatever it was called where it was built.
pub const WASM_ENTRY: &str = "app.wasm";
/// The name under which `tcli` uploads the file of an image.
pub const IMAGE_ENTRY: &str = "image.tar";
/// The port if neither the manifest nor the image says one.
pub const DEFAULT_PORT: u16 = 8080;
/// How long an instance may take to become healthy: a cold start of a large image fits.
pub const DEFAULT_HEALTHY_WITHIN: Duration = Duration::from_secs(60);
/// How long a stopping instance may finish what it has begun: longer than most requests live.
pub const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Memory of a component: its own heap, without an operating system around it.
const DEFAULT_MEMORY_WASM: ByteSize = ByteSize::mib(64);
/// Memory of everything else.
const DEFAULT_MEMORY: ByteSize = ByteSize::mib(512);
/// How long an app that stops when idle is kept without requests.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// What a volume may hold.
const DEFAULT_VOLUME_SIZE: ByteSize = ByteSize::mib(1024);
const DEFAULT_CPUS: Cpus = Cpus::from_milli(1000);

/// A manifest with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The app, if the manifest is an uploaded copy.
    pub id: Option<AppId>,
    /// Its name, unique in the tenant.
    pub name: AppName,
    /// What it is, for people; empty by default.
    pub description: String,
    /// Who may open it without a token; private by default.
    pub access: Access,
    /// Where the thing that runs comes from.
    pub build: Build,
    /// How an instance runs.
    pub running: Running,
    /// Variable → secret.
    pub secrets: BTreeMap<String, Secret>,
    /// Where it may connect to; nowhere by default.
    pub egress: Vec<Egress>,
    /// What it reads and writes.
    pub events: Events,
    /// Runs once per version, before any switch.
    pub release: Option<Command>,
    /// What runs by the clock.
    pub schedules: Vec<Schedule>,
    /// Raw TCP on its mesh address.
    pub ports: Vec<Port>,
    /// Where it runs, at least one; without `[[deploy]]`, any machine.
    pub targets: Vec<Target>,
}

/// How an instance runs, the same on every target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Instead of the image's command.
    pub command: Option<Command>,
    /// Where it answers.
    pub port: HttpPort,
    /// A path that answers 2xx once it is healthy; without it, accepting a connection is enough.
    pub health_path: Option<String>,
    /// How long it may take to become healthy.
    pub healthy_within: Duration,
    /// How long it may have nothing to do before it is stopped; without, it is always on.
    pub idle_after: Option<Duration>,
    /// How long a stopping instance may finish what it has begun.
    pub stop_timeout: Duration,
    /// The most memory it may use.
    pub memory: ByteSize,
    /// The most processor time it may use.
    pub cpus: Cpus,
    /// How many run at once, on each target.
    pub replicas: u16,
    /// What it keeps on disk.
    pub volume: Option<Volume>,
}

/// Where an instance answers HTTP; a component is called without a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpPort {
    /// Here; also in `$PORT`.
    Number(u16),
    /// Where its image's `EXPOSE` says, else on [`DEFAULT_PORT`].
    OfImage,
    /// Nowhere: a worker.
    None,
}

/// One place to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Which machines.
    pub supervisor: Supervisor,
    /// The runtime.
    pub runtime: RuntimeKind,
    /// `[env]` with the target's own variables over it.
    pub env: BTreeMap<String, String>,
}

impl Manifest {
    /// Fills in every default; `detected` is what stands in for an absent `[build]`: what was found
    /// in the folder, or, on the platform, what was uploaded.
    ///
    /// # Errors
    ///
    /// Every key whose feature is not built yet, and an absent `[build]` when nothing was detected.
    pub fn resolve(&self, detected: &Detected) -> Result<Resolved, ManifestErrors> {
        let mut out = Problems::new(self.file());
        for problem in not_supported_yet(self) {
            let place = Place {
                line: problem.line,
                column: problem.column,
            };
            out.add(place, problem.key, problem.message, problem.fix);
        }
        let build = match &self.build {
            Some(build) => Some(build.clone()),
            None => detected_build(detected, &mut out),
        };
        let resolved = build.map(|build| self.with_defaults(build, detected));
        out.finish(resolved)
    }

    fn with_defaults(&self, build: Build, detected: &Detected) -> Resolved {
        let runtime = self.runtime.kind.unwrap_or(match build {
            Build::Wasm { .. } => RuntimeKind::WasmHttp,
            Build::Dockerfile { .. } | Build::Image { .. } | Build::Archive { .. } => {
                RuntimeKind::Docker
            }
        });
        Resolved {
            id: self.app.id,
            name: self.app.name.clone(),
            description: self.app.description.clone().unwrap_or_default(),
            access: self.app.access.unwrap_or(Access::Private),
            running: self.running(runtime, detected),
            build,
            secrets: self.secrets.clone(),
            egress: self.egress.clone(),
            events: self.events.clone(),
            release: self.release.clone(),
            schedules: self.schedules.clone(),
            ports: self.ports.clone(),
            targets: self.targets(runtime),
        }
    }

    fn running(&self, runtime: RuntimeKind, detected: &Detected) -> Running {
        let written = &self.runtime;
        let memory = match runtime {
            RuntimeKind::WasmHttp => DEFAULT_MEMORY_WASM,
            RuntimeKind::Docker | RuntimeKind::Firecracker => DEFAULT_MEMORY,
        };
        let port = match (written.port, runtime, detected) {
            (Some(Some(port)), _, _) => HttpPort::Number(port),
            (Some(None), _, _) => HttpPort::None,
            (None, RuntimeKind::WasmHttp, _) => HttpPort::Number(DEFAULT_PORT),
            (None, _, Detected::Dockerfile { expose: Some(port) }) => HttpPort::Number(*port),
            (None, _, _) => HttpPort::OfImage,
        };
        Running {
            command: written.command.clone(),
            port,
            health_path: written.health.path.clone(),
            healthy_within: written.health.within.unwrap_or(DEFAULT_HEALTHY_WITHIN),
            idle_after: match written
                .lifecycle
                .unwrap_or_else(|| self.lifecycle(runtime, port))
            {
                Lifecycle::OnRequest => Some(written.idle_timeout.unwrap_or(DEFAULT_IDLE_TIMEOUT)),
                Lifecycle::AlwaysOn => None,
            },
            stop_timeout: written.stop_timeout.unwrap_or(DEFAULT_STOP_TIMEOUT),
            memory: written.memory.unwrap_or(memory),
            cpus: written.cpus.unwrap_or(DEFAULT_CPUS),
            replicas: written.replicas.unwrap_or(1),
            volume: written.volume.clone(),
        }
    }

    /// Without a `lifecycle`: a component is there again before anybody notices; others take their time, or have
    /// something to do that is no request.
    fn lifecycle(&self, runtime: RuntimeKind, port: HttpPort) -> Lifecycle {
        let written = &self.runtime;
        let is_quick =
            runtime == RuntimeKind::WasmHttp && written.volume.is_none() && port != HttpPort::None;
        match is_quick || written.idle_timeout.is_some() {
            true => Lifecycle::OnRequest,
            false => Lifecycle::AlwaysOn,
        }
    }

    fn targets(&self, runtime: RuntimeKind) -> Vec<Target> {
        let everywhere = || Target {
            supervisor: Supervisor::Any,
            runtime,
            env: self.env.clone(),
        };
        let overridden = self.deploys.iter().map(|deploy| {
            let mut env = self.env.clone();
            env.extend(deploy.env.clone());
            Target {
                supervisor: deploy.supervisor.clone(),
                runtime: deploy.runtime.unwrap_or(runtime),
                env,
            }
        });
        let targets: Vec<Target> = overridden.collect();
        if targets.is_empty() {
            vec![everywhere()]
        } else {
            targets
        }
    }
}

fn detected_build(detected: &Detected, out: &mut Problems) -> Option<Build> {
    let context = ".".to_owned();
    match detected {
        Detected::RustWasm { .. } => {
            let (wasm, command) = detected.component()?;
            Some(Build::Wasm {
                wasm,
                command,
                context,
            })
        }
        Detected::Component { path } => Some(Build::Wasm {
            wasm: path.clone(),
            command: None,
            context,
        }),
        Detected::Dockerfile { .. } => {
            let message = "a Dockerfile was found, and building from it is not supported yet";
            out.add(
                Place::START,
                "build",
                message,
                "add [build] wasm = \"…\", the path of a component",
            );
            None
        }
        Detected::Nothing => {
            let message = "build is missing, and nothing to run was found in the folder";
            out.add(
                Place::START,
                "build",
                message,
                "add [build] wasm = \"…\", the path of a component",
            );
            None
        }
    }
}

impl Resolved {
    /// What an instance of the first target needs.
    #[must_use]
    pub fn run_config(&self) -> RunConfig {
        self.run_on(self.first())
    }

    /// Where the first target's instances may run.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement_of(self.first())
    }

    /// The targets after the first.
    #[must_use]
    pub fn further(&self) -> Vec<DeployTarget> {
        let further = self.targets.iter().skip(1).map(|target| DeployTarget {
            run: self.run_on(target),
            placement: self.placement_of(target),
        });
        further.collect()
    }

    fn first(&self) -> &Target {
        let first = self.targets.first();
        first.expect("INVARIANT: resolve gives at least one target")
    }

    fn run_on(&self, target: &Target) -> RunConfig {
        let running = &self.running;
        RunConfig {
            runtime: target.runtime,
            entry: self.entry().to_owned(),
            memory: running.memory,
            env: target.env.clone(),
            stop_timeout_ms: millis(running.stop_timeout),
            healthy_within_ms: millis(running.healthy_within),
            image: self.image_config(),
            secrets: self.secret_uses(),
            egress: self.egress.iter().map(ToString::to_string).collect(),
            idle_after_ms: running.idle_after.map(millis),
            volume: running.volume.as_ref().map(volume_use),
            ports: self.ports.iter().map(|port| port.number).collect(),
        }
    }

    fn placement_of(&self, target: &Target) -> Placement {
        Placement {
            on: match &target.supervisor {
                Supervisor::Any => Machines::Any,
                Supervisor::Name(name) => Machines::Name(name.clone()),
                Supervisor::Tag(tag) => Machines::Tag(tag.clone()),
            },
            volume: self.running.volume.is_some(),
            replicas: self.running.replicas,
        }
    }

    fn secret_uses(&self) -> BTreeMap<String, SecretUse> {
        let uses = self.secrets.iter().map(|(variable, secret)| {
            let name = secret.name.parse();
            let used = SecretUse {
                name: name.expect("INVARIANT: a manifest has been read with the names of secrets"),
                delivery: match secret.delivery {
                    Delivery::Env => SecretDelivery::Env,
                    Delivery::File => SecretDelivery::File,
                },
            };
            (variable.clone(), used)
        });
        uses.collect()
    }

    /// How the image is run; `None` for a component.
    fn image_config(&self) -> Option<ImageConfig> {
        if let Build::Wasm { .. } = self.build {
            return None;
        }
        let running = &self.running;
        let command = running.command.as_ref();
        Some(ImageConfig {
            command: command.map_or_else(Vec::new, |command| command.words.clone()),
            port: match running.port {
                HttpPort::Number(port) => ImagePort::Number(port),
                HttpPort::OfImage => ImagePort::OfImage,
                HttpPort::None => ImagePort::None,
            },
            health_path: running.health_path.clone(),
            cpus_milli: running.cpus.milli(),
        })
    }

    /// The file of the artifact that is run; empty for an image, which is no file of it.
    #[must_use]
    pub fn entry(&self) -> &'static str {
        match self.build {
            Build::Wasm { .. } => WASM_ENTRY,
            Build::Archive { .. } => IMAGE_ENTRY,
            Build::Dockerfile { .. } | Build::Image { .. } => "",
        }
    }
}

fn volume_use(volume: &Volume) -> VolumeUse {
    VolumeUse {
        mount: volume.mount.clone(),
        size: volume.size.unwrap_or(DEFAULT_VOLUME_SIZE),
        snapshots: match volume.snapshots {
            Some(Snapshots::Hourly) => Some(SnapshotEvery::Hour),
            Some(Snapshots::Daily) => Some(SnapshotEvery::Day),
            Some(Snapshots::Weekly) => Some(SnapshotEvery::Week),
            Some(Snapshots::Never) | None => None,
        },
    }
}

/// Durations of a manifest are bounded by `limits` to days, so they fit.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
