//! People's devices: `tabbify mesh export-wg | devices | remove-device`, for whoever holds the data
//! directory of a platform whose gateway runs.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use tabbify_api::device::{Device, DeviceOrder, DeviceRemoval};
use tabbify_auth::OWNER;
use tabbify_mesh::PrivateKey;
use tabbify_mesh_gateway::{AskFailed, Client, StockConfig};
use tabbify_process::connect::UnixSocket;
use tabbify_process::{Tasks, chain};
use tabbify_types::{DeviceName, MeshKey, Tenant};

use crate::data_dir::DataDir;
use crate::gateway::GATEWAY_SOCKET;
use crate::role;

/// The commands, as they stand under `tabbify mesh`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Let a person's device in, and write the configuration for its stock WireGuard client
    ExportWg(Export),
    /// List people's devices, and what the gateway has done for them
    Devices(List),
    /// Take a device away: its connections end at once
    RemoveDevice(Remove),
}

/// Whose device it is.
#[derive(Debug, clap::Args)]
struct Whose {
    /// The person, as subject
    #[arg(long, default_value = OWNER)]
    user: String,
    /// The tenant in which the person goes
    #[arg(long, default_value = "main")]
    tenant: Tenant,
    /// The platform's data directory [default: $XDG_DATA_HOME/tabbify]
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Flags of `export-wg`.
#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    /// The device's name, such as `laptop`
    name: DeviceName,
    /// The public key that the device has made itself; without, a key is made here, written once and kept
    /// nowhere
    #[arg(long)]
    public_key: Option<MeshKey>,
    #[command(flatten)]
    whose: Whose,
}

/// Flags of `devices`.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// The platform's data directory [default: $XDG_DATA_HOME/tabbify]
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Flags of `remove-device`.
#[derive(Debug, clap::Args)]
pub(crate) struct Remove {
    /// The device's name
    name: DeviceName,
    #[command(flatten)]
    whose: Whose,
}

/// Does what the command says.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    let tasks = Tasks::new();
    let said = match command {
        Command::ExportWg(arguments) => export(arguments, &tasks).await,
        Command::Devices(arguments) => list(arguments, &tasks).await,
        Command::RemoveDevice(arguments) => remove(arguments, &tasks).await,
    };
    role::stop(&tasks).await?;
    role::say(&said?);
    Ok(())
}

async fn export(arguments: Export, tasks: &Tasks) -> anyhow::Result<String> {
    let Export {
        name,
        public_key,
        whose,
    } = arguments;
    let (key, private_key) = match public_key {
        Some(key) => (key, None),
        None => {
            let made = PrivateKey::generate();
            (made.public(), Some(made.to_text()))
        }
    };
    let order = DeviceOrder {
        user: whose.user,
        tenant: whose.tenant,
        name,
        key,
    };
    let client = client(whose.data_dir, tasks)?;
    let connection = client.add(&order).await.map_err(explain)?;
    let config = StockConfig {
        connection,
        private_key,
    };
    Ok(config.to_string())
}

async fn list(arguments: List, tasks: &Tasks) -> anyhow::Result<String> {
    let client = client(arguments.data_dir, tasks)?;
    let devices = client.devices().await.map_err(explain)?;
    let stats = client.stats().await.map_err(explain)?;
    if arguments.json {
        let all = serde_json::json!({ "devices": devices, "gateway": stats });
        return Ok(format!("{all}\n"));
    }
    let mut text = String::new();
    for device in &devices {
        let Device {
            user,
            tenant,
            name,
            key,
            address,
        } = device;
        // As texts, which keep to columns.
        let (name, tenant, address) = (name.as_str(), tenant.as_str(), address.to_string());
        text += &format!("{name:<20} {user:<24} {tenant:<12} {address:<24} {key}\n");
    }
    text += &format!(
        "{} devices · {} connected · {} connections · {} carried · {} refused · {} cut\n",
        devices.len(),
        stats.devices,
        stats.connections,
        stats.carried,
        stats.refused + stats.refused_full,
        stats.cut
    );
    Ok(text)
}

async fn remove(arguments: Remove, tasks: &Tasks) -> anyhow::Result<String> {
    let Remove { name, whose } = arguments;
    let removal = DeviceRemoval {
        user: whose.user,
        tenant: whose.tenant,
        name,
    };
    let client = client(whose.data_dir, tasks)?;
    let device = client.remove(&removal).await.map_err(explain)?;
    Ok(format!(
        "{} of {} · {} is let in no more\n",
        device.name, device.user, device.address
    ))
}

fn client(data_dir: Option<PathBuf>, tasks: &Tasks) -> anyhow::Result<Client> {
    let data = DataDir::choose(data_dir)?;
    let directory = data.path().to_path_buf();
    if !directory.join(GATEWAY_SOCKET).exists() {
        bail!(
            "no gateway has been here: {} has no {GATEWAY_SOCKET}. Say where it listens in [gateway] of the \
             configuration of tabbify up, and start that",
            directory.display()
        );
    }
    let name = GATEWAY_SOCKET.to_owned();
    Ok(Client::new(Arc::new(UnixSocket { directory, name }), tasks))
}

/// What to do about it.
fn explain(failed: AskFailed) -> anyhow::Error {
    let what_next = match &failed {
        AskFailed::Answer(_) => "Is tabbify up running, with [gateway] listen?",
        AskFailed::Refused(problem) if problem.status == 409 => {
            "tabbify mesh devices lists them, tabbify mesh remove-device takes one away"
        }
        AskFailed::Refused(_) => "tabbify mesh devices lists them",
        AskFailed::Shape(_) => "Are this program and tabbify up of the same version?",
    };
    anyhow!("{}. {what_next}", chain(&failed))
}
