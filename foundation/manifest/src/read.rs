//! Tree → [`Manifest`]: each table in the order of the documentation, then what holds between them.
//!
//! A wrong value is reported and read as absent, so that the rest is still checked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tabbify_types::event::v1::{Access, RuntimeKind};

use crate::limits::{
    DEPLOYS_MAX, EGRESS_COUNT_MAX, ENV_COUNT_MAX, ENV_LEN_MAX, HEALTHY_WITHIN_MAX,
    IDLE_TIMEOUT_MAX, MEMORY_MAX, MEMORY_MIN, PLATFORM_PORTS, PORTS_MAX, REPLICAS_MAX,
    SCHEDULES_MAX, SEGMENTS_COUNT_MAX, STOP_TIMEOUT_MAX, VOLUME_MAX, VOLUME_MIN,
};
use crate::manifest::{
    App, Build, Delivery, Deploy, Events, Health, Lifecycle, Manifest, Port, Runtime, Schedule,
    Secret, Snapshots, Supervisor, Volume, Written,
};
use crate::problem::Problems;
use crate::section::{Section, Wrong};
use crate::tree::{Node, Table, Value, join};
use crate::value::{self, Leaving};
use crate::{Egress, cron, egress};

const RUNTIMES: [(&str, RuntimeKind); 3] = [
    ("wasm-http", RuntimeKind::WasmHttp),
    ("docker", RuntimeKind::Docker),
    ("firecracker", RuntimeKind::Firecracker),
];

/// The manifest, unless its name is missing; whatever is wrong is in `out`.
pub(crate) fn manifest(table: &Table, out: &mut Problems) -> Option<Manifest> {
    let root = Section::root(table);
    let app = app(&root, out);
    let build = build(&root, out);
    let runtime = runtime(&root, out);
    let env = env(&root, out);
    let secrets = secrets(&root, &env, out);
    let network = root.sub(out, "network");
    let egress = egress_list(&network, out);
    let events = events(&root, out);
    let release = root.sub(out, "release");
    let release = if release.is_present() {
        release.required(
            out,
            "command",
            "write command = [\"./migrate\"]",
            value::command,
        )
    } else {
        None
    };
    let schedules = schedules(&root, out);
    let ports = ports(&root, out);
    let deploys = deploys(&root, out);
    check_runtimes(&root, build.as_ref(), out);
    let written = Written::none();
    let app = app?;
    Some(Manifest {
        app,
        build,
        runtime,
        env,
        secrets,
        egress,
        events,
        release,
        schedules,
        ports,
        deploys,
        written,
    })
}

fn app(root: &Section<'_>, out: &mut Problems) -> Option<App> {
    let app = root.sub(out, "app");
    let id = app.field(out, "id", value::app_id);
    let fix = "write name = \"shop\" below [app]";
    let name = app.required(out, "name", fix, value::app_name);
    let description = app.field(out, "description", value::description);
    let choices = [("private", Access::Private), ("public", Access::Public)];
    let access = app.field(out, "access", |node| value::choice(node, &choices));
    Some(App {
        id,
        name: name?,
        description,
        access,
    })
}

fn build(root: &Section<'_>, out: &mut Problems) -> Option<Build> {
    let build = root.sub(out, "build");
    if !build.is_present() {
        return None;
    }
    let given: Vec<&str> = ["dockerfile", "image", "wasm"]
        .into_iter()
        .filter(|key| build.get(key).is_some())
        .collect();
    let [source] = given[..] else {
        let message = match given[..] {
            [] => "build has none of dockerfile, image and wasm".to_owned(),
            _ => format!("build has {}", given.join(" and ")),
        };
        let place = given.last().map_or(build.place, |key| build.place_of(key));
        out.add(
            place,
            "build",
            message,
            "write exactly one of dockerfile, image and wasm, or no [build]",
        );
        return None;
    };
    let leaving = if source == "wasm" {
        Leaving::Allowed
    } else {
        Leaving::Refused
    };
    let context = build.field(out, "context", |node| value::project_path(node, leaving));
    let context = context.unwrap_or_else(|| ".".to_owned());
    let command = build.field(out, "command", value::build_command);
    for key in ["context", "command"] {
        let meaningless = source == "image" || (source == "dockerfile" && key == "command");
        if let (true, Some(node)) = (meaningless, build.get(key)) {
            build.wrong(
                out,
                key,
                node,
                Wrong::new(
                    format!("has no meaning with build.{source}"),
                    "delete the line",
                ),
            );
        }
    }
    match source {
        "dockerfile" => {
            let read = |node| value::project_path(node, Leaving::Refused);
            build
                .field(out, source, read)
                .map(|dockerfile| Build::Dockerfile {
                    dockerfile,
                    context,
                })
        }
        "image" => build.field(out, source, value::image),
        _ => build
            .field(out, source, value::wasm_path)
            .map(|wasm| Build::Wasm {
                wasm,
                command,
                context,
            }),
    }
}

fn runtime(root: &Section<'_>, out: &mut Problems) -> Runtime {
    let runtime = root.sub(out, "runtime");
    let health = runtime.sub(out, "health");
    let second = Duration::from_secs(1);
    let lifecycles = [
        ("on_request", Lifecycle::OnRequest),
        ("always_on", Lifecycle::AlwaysOn),
    ];
    let read = Runtime {
        kind: runtime.field(out, "type", |node| value::choice(node, &RUNTIMES)),
        command: runtime.field(out, "command", value::command),
        port: runtime.field(out, "port", port_or_false),
        health: Health {
            path: health.field(out, "path", value::url_path),
            within: health.field(out, "within", |node| {
                value::duration(node, second, HEALTHY_WITHIN_MAX)
            }),
        },
        lifecycle: runtime.field(out, "lifecycle", |node| value::choice(node, &lifecycles)),
        idle_timeout: runtime.field(out, "idle_timeout", |node| {
            value::duration(node, second, IDLE_TIMEOUT_MAX)
        }),
        stop_timeout: runtime.field(out, "stop_timeout", |node| {
            value::duration(node, Duration::ZERO, STOP_TIMEOUT_MAX)
        }),
        memory: runtime.field(out, "memory", |node| {
            value::size(node, MEMORY_MIN, MEMORY_MAX)
        }),
        cpus: runtime.field(out, "cpus", value::cpus),
        replicas: runtime.field(out, "replicas", |node| value::count(node, REPLICAS_MAX)),
        volume: volume(&runtime, out),
    };
    if let (Some(Lifecycle::AlwaysOn), Some(node)) = (read.lifecycle, runtime.get("idle_timeout")) {
        let wrong = Wrong::new(
            "has no meaning with lifecycle = \"always_on\"",
            "delete one of the two lines",
        );
        runtime.wrong(out, "idle_timeout", node, wrong);
    }
    if let (true, Some(node)) = (runtime.get("volume").is_some(), runtime.get("replicas"))
        && read.replicas.is_some_and(|replicas| replicas > 1)
    {
        let wrong = Wrong::new(
            "is too many: a volume has one holder",
            "write replicas = 1, or remove the volume",
        );
        runtime.wrong(out, "replicas", node, wrong);
    }
    read
}

fn port_or_false(node: &Node) -> Result<Option<u16>, Wrong> {
    match node.value {
        Value::Bool(false) => Ok(None),
        Value::Bool(true) => Err(Wrong::new(
            "names no port",
            "write the port, such as 8080, or delete the line",
        )),
        _ => value::count(node, u16::MAX)
            .map(Some)
            .map_err(|wrong| Wrong {
                fix: "write a port from 1 to 65535, or false for a worker without HTTP".to_owned(),
                ..wrong
            }),
    }
}

fn volume(runtime: &Section<'_>, out: &mut Problems) -> Option<Volume> {
    let volume = runtime.sub(out, "volume");
    if !volume.is_present() {
        return None;
    }
    let often = [
        ("hourly", Snapshots::Hourly),
        ("daily", Snapshots::Daily),
        ("weekly", Snapshots::Weekly),
        ("never", Snapshots::Never),
    ];
    let mount = volume.required(out, "mount", "write mount = \"/data\"", value::mount_path);
    let size = volume.field(out, "size", |node| {
        value::size(node, VOLUME_MIN, VOLUME_MAX)
    });
    let snapshots = volume.field(out, "snapshots", |node| value::choice(node, &often));
    Some(Volume {
        mount: mount?,
        size,
        snapshots,
    })
}

/// `env` of the root or of a `[[deploy]]`.
fn env(parent: &Section<'_>, out: &mut Problems) -> BTreeMap<String, String> {
    let env = parent.sub(out, "env");
    let mut read = BTreeMap::new();
    for (name, node) in env.entries() {
        check_name(&env, name, node, out);
        if let Some(value) = env.field(out, name, value::env_value) {
            read.insert(name.clone(), value);
        }
    }
    let len: usize = read
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if len > ENV_LEN_MAX {
        let message = format!(
            "{} has {len} bytes, and {ENV_LEN_MAX} are allowed",
            env.path
        );
        out.add(
            env.place,
            env.path.clone(),
            message,
            "put large values into a file of the app",
        );
    }
    if read.len() > ENV_COUNT_MAX {
        let message = format!(
            "{} has {} variables, and {ENV_COUNT_MAX} are allowed",
            env.path,
            read.len()
        );
        out.add(env.place, env.path.clone(), message, "remove some");
    }
    read
}

fn check_name(section: &Section<'_>, name: &str, node: &Node, out: &mut Problems) {
    if let Err(wrong) = value::check_env_name(name) {
        let path = join(&section.path, name);
        out.add(
            node.place,
            path.clone(),
            format!("{path} {}", wrong.message),
            wrong.fix,
        );
    }
}

fn secrets(
    root: &Section<'_>,
    env: &BTreeMap<String, String>,
    out: &mut Problems,
) -> BTreeMap<String, Secret> {
    let section = root.sub(out, "secrets");
    let mut read = BTreeMap::new();
    for (variable, node) in section.entries() {
        check_name(&section, variable, node, out);
        let Some(secret) = secret(&section, variable, node, out) else {
            continue;
        };
        let taken = match secret.delivery {
            Delivery::Env => variable.clone(),
            Delivery::File => format!("{variable}_FILE"),
        };
        if env.contains_key(&taken) || env.contains_key(variable) {
            let taken = if env.contains_key(&taken) {
                &taken
            } else {
                variable
            };
            let path = join("secrets", variable);
            let line = root.sub(out, "env").place_of(taken).line;
            let message =
                format!("{path} gives {taken}, which env.{taken} (line {line}) gives too");
            out.add(node.place, path, message, "delete one of the two");
        }
        read.insert(variable.clone(), secret);
    }
    if read.len() + env.len() > ENV_COUNT_MAX && env.len() <= ENV_COUNT_MAX {
        let message = format!(
            "env and secrets have {} variables, and {ENV_COUNT_MAX} are allowed",
            read.len() + env.len()
        );
        out.add(section.place, "secrets", message, "remove some");
    }
    read
}

/// One entry of `[secrets]`. What stands there may be a secret's value by mistake, so messages
/// about it never show it.
fn secret(
    section: &Section<'_>,
    variable: &str,
    node: &Node,
    out: &mut Problems,
) -> Option<Secret> {
    let path = join(&section.path, variable);
    let mut delivery = Delivery::Env;
    let mut named = node;
    if let Value::Table(entries) = &node.value {
        let table = section.sub(out, variable);
        let ways = [("env", Delivery::Env), ("file", Delivery::File)];
        let way = table.field(out, "as", |node| value::choice(node, &ways));
        delivery = way.unwrap_or_default();
        let Some(name) = entries.get("name") else {
            let fix = "write name = \"api-key\", the name of the secret";
            out.add(
                node.place,
                path.clone(),
                format!("{path}.name is missing"),
                fix,
            );
            return None;
        };
        named = name;
    }
    match value::secret_name(named) {
        Ok(name) => Some(Secret { name, delivery }),
        Err(wrong) => {
            if named.value != Value::Broken {
                out.add(
                    named.place,
                    path.clone(),
                    format!("{path} {}", wrong.message),
                    wrong.fix,
                );
            }
            None
        }
    }
}

fn egress_list(network: &Section<'_>, out: &mut Problems) -> Vec<Egress> {
    let read = network.items(out, "egress", EGRESS_COUNT_MAX, egress::egress);
    if read.len() > 1
        && read.contains(&Egress::Any)
        && let Some(node) = network.get("egress")
    {
        let wrong = Wrong::new(
            "has \"any\" beside others",
            "write [\"any\"], or only the others",
        );
        network.wrong(out, "egress", node, wrong);
    }
    read
}

fn events(root: &Section<'_>, out: &mut Problems) -> Events {
    let events = root.sub(out, "events");
    Events {
        subscribe: events.items(out, "subscribe", SEGMENTS_COUNT_MAX, value::segment_glob),
        emit: events.items(out, "emit", SEGMENTS_COUNT_MAX, value::segment),
        path: events.field(out, "path", value::url_path),
    }
}

fn schedules(root: &Section<'_>, out: &mut Problems) -> Vec<Schedule> {
    let mut read = Vec::new();
    for block in root.blocks(out, "schedule", SCHEDULES_MAX) {
        let cron = block.required(out, "cron", "write cron = \"0 3 * * *\"", cron::cron);
        let command = block.required(
            out,
            "command",
            "write command = [\"./cleanup\"]",
            value::command,
        );
        if let (Some(cron), Some(command)) = (cron, command) {
            read.push(Schedule { cron, command });
        }
    }
    read
}

fn ports(root: &Section<'_>, out: &mut Problems) -> Vec<Port> {
    let mut read: Vec<Port> = Vec::new();
    for block in root.blocks(out, "port", PORTS_MAX) {
        let number = block.required(out, "number", "write number = 5432", |node| {
            let number = value::count(node, u16::MAX)?;
            if PLATFORM_PORTS.contains(&number) {
                return Err(Wrong::new(
                    "is where the platform itself answers",
                    "choose another port",
                ));
            }
            if read.iter().any(|port| port.number == number) {
                return Err(Wrong::new(
                    "stands in another [[port]] too",
                    "delete one of them",
                ));
            }
            Ok(number)
        });
        read.extend(number.map(|number| Port { number }));
    }
    read
}

fn deploys(root: &Section<'_>, out: &mut Problems) -> Vec<Deploy> {
    let mut read = Vec::new();
    let mut seen: BTreeSet<Supervisor> = BTreeSet::new();
    // Its type was checked, and reported, where it was read.
    let runtime = root.sub(&mut Problems::new(""), "runtime");
    let has_volume = runtime.get("volume").is_some();
    for block in root.blocks(out, "deploy", DEPLOYS_MAX) {
        let fix = "write supervisor = \"any\", \"name:box1\" or \"tag:gpu\"";
        let supervisor = block.required(out, "supervisor", fix, |node| {
            let supervisor = value::supervisor(node)?;
            if !seen.insert(supervisor.clone()) {
                Err(Wrong::new(
                    "stands in another [[deploy]] too",
                    "keep one block for each target",
                ))
            } else if has_volume && seen.len() > 1 {
                Err(Wrong::new(
                    "is a target too many: a volume has one holder",
                    "keep one [[deploy]], or remove the volume",
                ))
            } else {
                Ok(supervisor)
            }
        });
        let runtime = block.field(out, "runtime", |node| value::choice(node, &RUNTIMES));
        let env = env(&block, out);
        read.extend(supervisor.map(|supervisor| Deploy {
            supervisor,
            runtime,
            env,
        }));
    }
    read
}

/// A runtime that the build cannot give is a mistake, in `[runtime]` and in every `[[deploy]]`.
fn check_runtimes(root: &Section<'_>, build: Option<&Build>, out: &mut Problems) {
    let Some(build) = build else { return };
    // The types of these were checked, and reported, where they were read.
    let mut silent = Problems::new("");
    let runtime = root.sub(&mut silent, "runtime");
    check_runtime(&runtime, "type", build, out);
    for block in root.blocks(&mut silent, "deploy", DEPLOYS_MAX) {
        check_runtime(&block, "runtime", build, out);
    }
}

fn check_runtime(section: &Section<'_>, key: &str, build: &Build, out: &mut Problems) {
    let Some(node) = section.get(key) else { return };
    let Ok(kind) = value::choice(node, &RUNTIMES) else {
        return;
    };
    let (source, fits, fix) = match build {
        Build::Wasm { .. } => ("wasm", kind == RuntimeKind::WasmHttp, "write \"wasm-http\""),
        Build::Dockerfile { .. } => (
            "dockerfile",
            kind != RuntimeKind::WasmHttp,
            "write \"docker\" or \"firecracker\"",
        ),
        Build::Image { .. } | Build::Archive { .. } => (
            "image",
            kind != RuntimeKind::WasmHttp,
            "write \"docker\" or \"firecracker\"",
        ),
    };
    if !fits {
        section.wrong(
            out,
            key,
            node,
            Wrong::new(format!("cannot run what build.{source} gives"), fix),
        );
    }
}
