//! Three machines: a public one with the node, and two supervisors behind NATs of their own. An app runs on
//! the first, answers through the node, and when the first is cut off, runs on the second and answers again.
//!
//! ```text
//! 192.168.1.2 ─ NAT 203.0.113.18 ─┐
//!                                 203.0.113.17, .33: node, log, auth, coordinator, relay, STUN
//! 192.168.1.2 ─ NAT 203.0.113.34 ─┘
//! ```

use anyhow::{Context as _, ensure};
use tabbify_testing::apart::is_apart;
use tabbify_testing::machine::Machine;
use tabbify_testing::place::Place;
use tabbify_testing::process::runners;
use tabbify_testing::{Platform, wait};

const NAME: &str = "an_app_moves_when_its_machine_is_cut_off";

/// The public machine: reached at any of its addresses; a machine that is not heard for 6 s is lost.
const CONFIG: &str = "[coordinator]
listen = \"0.0.0.0:8888\"
lost_after_s = 6
[relay]
udp = \"0.0.0.0:3478\"
[mesh]
underlay = \"0.0.0.0:51820\"
";

/// A host behind a NAT, which is on side `n` of the public machine.
async fn behind_a_nat(n: u8) -> anyhow::Result<(Place, Place)> {
    let (nat, host) = (Place::new()?, Place::new()?);
    let (near, far) = (16 * n + 1, 16 * n + 2);
    nat.cable_home(
        &format!("side{n} 203.0.113.{near}/28"),
        &format!("wan 203.0.113.{far}/28"),
    )
    .await?;
    nat.ip(&format!("route add default via 203.0.113.{near}"))
        .await?;
    nat.translate().await?;
    nat.cable("lan 192.168.1.1/24", &host, "wan 192.168.1.2/24")
        .await?;
    host.ip("route add default via 192.168.1.1").await?;
    Ok((nat, host))
}

/// Asks the app until it answers.
async fn greets(platform: &Platform, id: &str) -> anyhow::Result<()> {
    let path = format!("/app/{id}/there");
    wait::until("the app answers", async || {
        let (status, text) = platform.get(&path).await.ok()?;
        (status == 200 && text.contains("hello from /there")).then_some(())
    })
    .await
}

#[test]
fn an_app_moves_when_its_machine_is_cut_off() -> anyhow::Result<()> {
    // What needs the network is done outside of the laboratory.
    tabbify_testing::platform::build_app("examples/hello-wasm")?;
    if !is_apart(NAME)? {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(story())
}

#[expect(clippy::print_stderr, reason = "figures for whoever runs it")]
async fn story() -> anyhow::Result<()> {
    let platform = Platform::start_with(CONFIG).await?;
    let (first_nat, first) = behind_a_nat(1).await?;
    let (_second_nat, second) = behind_a_nat(2).await?;
    let mut machines = [
        Machine::new(&platform, "box-a", Some(first)),
        Machine::new(&platform, "box-b", Some(second)),
    ];
    machines[0]
        .join(&platform.data(), "203.0.113.17:8888")
        .await?;
    machines[1]
        .join(&platform.data(), "203.0.113.33:8888")
        .await?;
    let [a, b] = &machines;

    let folder = platform.copy_app("examples/hello-wasm", "hello")?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    greets(&platform, &id).await?;
    let on = |machine: &Machine| -> anyhow::Result<usize> { Ok(runners(&machine.data)?.len()) };
    ensure!(
        on(a)? == 1 && on(b)? == 0,
        "it is on the first\n{}",
        a.log()
    );

    let cut = tokio::time::Instant::now();
    first_nat.ip("link set wan down").await?;
    wait::until("the app is on the second machine", async || {
        (on(b).ok()? == 1).then_some(())
    })
    .await?;
    let placed = cut.elapsed();
    greets(&platform, &id).await?;
    let moved = cut.elapsed();
    eprintln!("cut off → placed {placed:.1?} → answers {moved:.1?}");
    Ok(())
}
