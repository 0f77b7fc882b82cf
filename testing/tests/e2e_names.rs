//! One app calls another by its name, through everything that is real, and `tabbify mesh` shows how the
//! machine reaches them.

use anyhow::{Context as _, ensure};
use tabbify_testing::{Platform, role};

#[tokio::test(flavor = "multi_thread")]
async fn an_app_calls_another_by_name() -> anyhow::Result<()> {
    let platform = Platform::start().await?;
    let hello = platform.copy_app("examples/hello-wasm", "hello")?;
    platform.succeed(&hello, &["push"]).await?;
    let called = platform.status(&hello).await?;
    let name = called["name"].as_str().context("a name")?.to_owned();
    let ask = platform.copy_app("testing/fixtures/wasm/ask", "ask")?;
    platform.succeed(&ask, &["push"]).await?;
    let id = platform.status(&ask).await?;
    let id = id["id"].as_str().context("id")?.to_owned();

    let host = format!("{name}.main.internal");
    let (status, seen) = platform.get(&format!("/app/{id}/{host}/headers")).await?;
    ensure!(status == 200, "{status}: {seen}\n{}", platform.log());
    ensure!(seen.contains(&format!("x-tabbify-app: {id}")), "{seen}");
    ensure!(!seen.contains("forged"), "{seen}");
    // Nobody, and the machine, which is none of an app's business: the same answer.
    for host in ["nobody.main.internal", "local.internal"] {
        let (status, said) = platform.get(&format!("/app/{id}/{host}/")).await?;
        ensure!(
            status == 502 && said.contains("DestinationNotFound"),
            "{host}: {status} {said}"
        );
    }

    // The machine itself sees both, by name.
    let data = platform.data();
    let pings = role::done(&["mesh", "ping", &host, "-c", "2", "-i", "100"], &data).await?;
    ensure!(
        pings.contains(&host) && pings.contains("2 sent, 2 answered"),
        "{pings}"
    );
    ensure!(pings.contains("direct "), "{pings}");
    let status = role::done(&["mesh", "status"], &data).await?;
    ensure!(
        status.contains("stack ") && status.contains(&host),
        "{status}"
    );
    let why = role::done(&["mesh", "explain", &host], &data).await?;
    ensure!(
        why.contains("(in use)") && !why.contains("not direct"),
        "{why}"
    );
    let machines = platform.succeed(&hello, &["machines", "list"]).await?;
    ensure!(
        machines.contains("local") && machines.contains("ready"),
        "{machines}"
    );
    Ok(())
}
