//! QEMU as the monitor: an ordinary process without privilege, its network in user space.
//!
//! The machine is a `q35`: kernels of distributions find virtio devices on its PCI bus, and reboot by
//! themselves; `microvm` without ACPI needs kernels that take devices from the command line, which
//! Debian's does not. Networking is QEMU's own: it needs no rights at all, unlike a tap, and with
//! `restrict=on` nothing passes from the guest but answers on the ports that are forwarded to it.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tabbify_api::BoxFuture;
use tabbify_api::runner::Acceleration;
use tabbify_guest_init::order::Network;
use tabbify_guest_init::wire::PORT;
use tabbify_process::{Importance, Tasks, unix};
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::OnceCell;

use crate::bound::Bound;
use crate::error::{Result, VmError};
use crate::initramfs::initramfs;
use crate::kvm;
use crate::machine::{Assets, Machine};
use crate::monitor;
use crate::tail::Tail;
use crate::vmm::{Launched, Vmm};

/// The program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// The package of Debian that has it.
pub(crate) const PACKAGE: &str = "qemu-system-x86";
/// Where programs are looked for: whoever starts us may have no environment at all.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// LIMIT: how long it may take to connect to the sockets that it is given.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// LIMIT: how long the words of a monitor that failed are waited for.
const SAID_WITHIN: Duration = Duration::from_secs(1);
/// The guest in the network that QEMU makes for it; the same in every machine.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// What it is told of it: there is no way out, and nobody who resolves names.
const NETWORK: Network = Network {
    address: GUEST,
    prefix: 24,
    gateway: None,
    resolver: None,
};
/// What the guest's kernel is told: a console, no graphics, to reset instead of stopping, and that its timer
/// works: on a busy host its own test of that fails, and it gives up.
const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1 quiet no_timer_check rdinit=/init";
/// What a process may not do that reads what a hostile guest writes.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Runs machines with `qemu-system-x86_64`.
#[derive(Debug)]
pub struct Qemu {
    assets: Assets,
    acceleration: Acceleration,
    kvm: OnceCell<bool>,
}

impl Qemu {
    /// With these files.
    #[must_use]
    pub fn new(assets: Assets, acceleration: Acceleration) -> Self {
        Self {
            assets,
            acceleration,
            kvm: OnceCell::new(),
        }
    }

    /// Whether machines run on the processor. [`Acceleration::Auto`] boots one to know, once.
    ///
    /// # Errors
    /// What every machine would fail of.
    pub async fn uses_kvm(&self, tasks: &Tasks) -> Result<bool> {
        match self.acceleration {
            Acceleration::Kvm => Ok(true),
            Acceleration::Tcg => Ok(false),
            Acceleration::Auto => {
                let probe = || kvm::usable(&self.assets, tasks);
                self.kvm.get_or_try_init(probe).await.copied()
            }
        }
    }

    async fn start(&self, machine: &Machine, tasks: &Tasks) -> Result<Launched> {
        let kernel = self.assets.kernel.clone();
        if !kernel.is_file() {
            return Err(VmError::Kernel { path: kernel });
        }
        let kvm = self.uses_kvm(tasks).await?;
        let initramfs = initramfs(&self.assets)?;
        let directory = &machine.directory;
        let bind =
            |name: &str| unix::bind(directory, name).map_err(VmError::io("listen in", directory));
        let sockets = [
            bind("control.sock")?,
            bind("monitor.sock")?,
            bind("console.sock")?,
        ];
        let way = machine.way_out.then(|| bind("way.sock")).transpose()?;
        let program = program(&self.assets);
        let mut command = Command::new(&program);
        command
            .args(arguments(machine, &kernel, &initramfs, kvm)?)
            .current_dir(directory)
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let spawned = Bound::spawn(command).await;
        let (process, stderr) = spawned.map_err(|source| VmError::Program {
            program: program.display().to_string(),
            package: PACKAGE,
            source,
        })?;
        let said = Tail::default();
        if let Some(stderr) = stderr
            && let Ok(stderr) = pipe::Receiver::from_owned_fd(stderr.into())
        {
            tasks.spawn("qemu", Importance::Detached, said.clone().follow(stderr));
        }
        let connected = connected(&process, sockets, way);
        let connected = tokio::time::timeout(CONNECT_WITHIN, connected).await;
        let Ok(Some(([control, monitor, console], way))) = connected else {
            return Err(given_up(process, &said, "it did not start in 20 s").await);
        };
        let tail = Tail::default();
        tasks.spawn(
            "microvm console",
            Importance::Detached,
            tail.clone().follow(console),
        );
        match monitor::forwarded(monitor).await {
            Ok(addresses) => Ok(Launched {
                process,
                control,
                way,
                console: tail,
                network: Some(NETWORK),
                addresses,
            }),
            Err(error) => Err(given_up(process, &said, &error.to_string()).await),
        }
    }
}

impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        "QEMU"
    }

    fn launch<'a>(
        &'a self,
        machine: &'a Machine,
        tasks: &'a Tasks,
    ) -> BoxFuture<'a, Result<Launched>> {
        Box::pin(self.start(machine, tasks))
    }
}

/// The program that is run.
pub(crate) fn program(assets: &Assets) -> PathBuf {
    let named = assets.monitor.clone();
    named.unwrap_or_else(|| PathBuf::from(PROGRAM))
}

/// Ends what did not become a machine; what it said itself explains it best.
async fn given_up(process: Bound, said: &Tail, otherwise: &str) -> VmError {
    process.kill();
    process.ended().await;
    said.whole(SAID_WITHIN).await;
    let said = Some(said.lines(4)).filter(|said| !said.is_empty());
    VmError::Monitor {
        monitor: "QEMU",
        said: said.unwrap_or_else(|| otherwise.to_owned()),
    }
}

/// The connections; `None` if the process ends first.
async fn connected(
    process: &Bound,
    sockets: [UnixListener; 3],
    way: Option<UnixListener>,
) -> Option<([UnixStream; 3], Option<UnixStream>)> {
    let [control, monitor, console] = &sockets;
    let all = async {
        let control = control.accept().await.ok()?.0;
        let monitor = monitor.accept().await.ok()?.0;
        let console = console.accept().await.ok()?.0;
        let way = match &way {
            Some(way) => Some(way.accept().await.ok()?.0),
            None => None,
        };
        Some(([control, monitor, console], way))
    };
    tokio::select! {
        all = all => all,
        _ = process.ended() => None,
    }
}

/// What QEMU is started with.
fn arguments(
    machine: &Machine,
    kernel: &Path,
    initramfs: &Path,
    kvm: bool,
) -> Result<Vec<OsString>> {
    let mib = (machine.memory.0 >> 20).max(64);
    let (accel, cpu) = if kvm { ("kvm", "host") } else { ("tcg", "max") };
    let mut list: Vec<OsString> = Vec::new();
    let mut add = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
        list.extend([name.into(), value.as_ref().to_owned()]);
    };
    add("-sandbox", &SANDBOX);
    let board = format!("q35,accel={accel},usb=off,sata=off,smbus=off,vmport=off");
    add("-machine", &board);
    add("-cpu", &cpu);
    add("-m", &mib.to_string());
    add("-smp", &machine.processors.max(1).to_string());
    add("-kernel", &kernel);
    add("-initrd", &initramfs);
    add("-append", &COMMAND_LINE);
    add("-display", &"none");
    add("-device", &"virtio-rng-pci");
    add("-device", &"virtio-serial-pci");
    for name in ["control", "monitor", "console"] {
        // Names in its own directory: a path may be too long for a socket.
        add("-chardev", &format!("socket,id={name},path={name}.sock"));
    }
    add(
        "-device",
        &format!("virtserialport,chardev=control,name={PORT}"),
    );
    if machine.way_out {
        add("-chardev", &"socket,id=way,path=way.sock");
        let port = tabbify_guest_init::way::PORT;
        add(
            "-device",
            &format!("virtserialport,chardev=way,name={port}"),
        );
    }
    add("-mon", &"chardev=monitor,mode=control");
    add("-serial", &"chardev:console");
    add("-blockdev", &drive("image", &machine.root, true)?);
    add("-device", &"virtio-blk-pci,drive=image");
    if let Some(volume) = &machine.volume {
        add("-blockdev", &drive("volume", volume, false)?);
        add("-device", &"virtio-blk-pci,drive=volume");
    }
    let forward = |port: &u16| format!(",hostfwd=tcp:127.0.0.1:0-{GUEST}:{port}");
    let forwards: String = machine.ports.iter().map(forward).collect();
    add(
        "-netdev",
        &format!("user,id=net,restrict=on,ipv6=off{forwards}"),
    );
    // Without the program that boots from a network, which takes a second to find none.
    add("-device", &"virtio-net-pci,netdev=net,romfile=");
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        list.push(flag.into());
    }
    Ok(list)
}

/// A drive in JSON, where no character of a path means anything.
fn drive(name: &str, path: &PathBuf, read_only: bool) -> Result<String> {
    let absolute = std::path::absolute(path).map_err(VmError::io("find", path))?;
    let Some(filename) = absolute.to_str() else {
        let error = std::io::Error::from(std::io::ErrorKind::InvalidFilename);
        return Err(VmError::io("name", path)(error));
    };
    let file = json!({"driver": "file", "filename": filename, "read-only": read_only});
    let drive = json!({"driver": "raw", "node-name": name, "read-only": read_only, "file": file});
    Ok(drive.to_string())
}
