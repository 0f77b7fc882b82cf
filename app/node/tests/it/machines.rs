//! `GET /v1/machines`: what each caller sees of the platform's machines.

use anyhow::{Result, ensure};
use tabbify_types::event::v1::{
    Capability, PeerJoined, PeerLeft, SupervisorJoined, SupervisorLost,
};
use tabbify_types::{HostName, HostUla, MeshKey, Segment};

use crate::harness::Platform;

fn joined(host: &str, index: u16, tags: &[&str]) -> Result<PeerJoined> {
    Ok(PeerJoined {
        host: host.parse()?,
        network: "main".to_owned(),
        index,
        address: HostUla::new(1, index),
        key: MeshKey([u8::try_from(index)?; 32]),
        tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
    })
}

#[tokio::test]
async fn who_sees_which_machines() -> Result<()> {
    let platform = Platform::start().await?;
    let (peers, supervisors) = (Segment::peers(), Segment::supervisors());
    for (index, name, tags) in [
        (1, "core", &["role:node"][..]),
        (2, "box2", &["tenant:main"]),
        (3, "box3", &["tenant:acme"]),
        (4, "gone", &["tenant:main"]),
    ] {
        let event = joined(name, index, tags)?;
        platform.append_at(&peers, name, event.into()).await?;
    }
    let host: HostName = "box2".parse()?;
    let capabilities = vec![Capability {
        runtime: "wasm-http".to_owned(),
        works: true,
        detail: String::new(),
    }];
    let ready = SupervisorJoined {
        host: host.clone(),
        capabilities,
        memory: None,
    };
    platform
        .append_at(&supervisors, "box2", ready.into())
        .await?;
    platform
        .append_at(&supervisors, "box2", SupervisorLost { host }.into())
        .await?;
    let host: HostName = "gone".parse()?;
    platform
        .append_at(&peers, "gone", PeerLeft { host }.into())
        .await?;

    let seen = async |token: &str| -> Result<Vec<String>> {
        let list = platform.get("/v1/machines", token).await?.json()?;
        let machines = list["machines"].as_array().cloned().unwrap_or_default();
        let shown = machines.iter().map(|machine| {
            let text = |field: &str| machine[field].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", text("host"), text("state"), text("tenant"))
        });
        Ok(shown.collect())
    };
    // In these tests `owner` is the platform's owner, and `acme` that of another tenant.
    ensure!(
        seen("owner").await? == ["box2 lost main", "box3 member acme", "core member system"],
        "{:?}",
        seen("owner").await?
    );
    ensure!(seen("acme").await? == ["box3 member acme"]);
    for (token, expected) in [("reader", (403, "forbidden")), ("", (401, "token_missing"))] {
        let (status, code) = platform.get("/v1/machines", token).await?.problem()?;
        ensure!(
            (status, code.as_str()) == expected,
            "{token}: {status} {code}"
        );
    }
    // A restart folds nothing anew and shows the same.
    let platform = platform.restart().await?;
    let list = platform.get("/v1/machines", "owner").await?.json()?;
    ensure!(list["machines"].as_array().map(Vec::len) == Some(3));
    Ok(())
}
