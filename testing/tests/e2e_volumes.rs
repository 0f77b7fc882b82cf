//! An app with a volume, pushed to a platform of real processes, in containers of a real engine: what it keeps
//! outlives versions, restarts and crashes, grows, ends with the app's own error, and is removed when asked.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tabbify_testing::apart::is_apart;
use tabbify_testing::dockerd::Dockerd;
use tabbify_testing::image::Image;
use tabbify_testing::process::runners;
use tabbify_testing::wait::until;
use tabbify_testing::{Platform, role};

const NAME: &str = "what_an_app_keeps_outlives_it";

#[test]
fn what_an_app_keeps_outlives_it() {
    if let Some(why) = Dockerd::missing() {
        eprintln!("NOT RUN: {NAME}: {why}");
        return;
    }
    if !is_apart(NAME).unwrap() {
        return;
    }
    let dockerd = Dockerd::start(&[]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(kept(&dockerd)).unwrap();
}

/// A component sees its volume at its place, and nothing of the machine's disk beside it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_component_keeps_outlives_it() {
    let platform = Platform::start().await.unwrap();
    let from = "testing/fixtures/wasm/disk";
    let folder = platform.copy_app(from, "disk").unwrap();
    component(&platform, &folder).await.unwrap();
}

async fn component(platform: &Platform, folder: &Path) -> anyhow::Result<()> {
    platform.succeed(folder, &["push"]).await?;
    let id = platform.status(folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    let get = async |path: &str| platform.get(&format!("/app/{id}/{path}")).await;
    ensure!(get("write/data/notes?one").await?.0 == 200);
    platform.succeed(folder, &["restart"]).await?;
    ensure!(get("write/data/notes?two").await?.0 == 200);
    for pid in runners(&platform.data())? {
        let killed = Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()?;
        ensure!(killed.success());
    }
    until("another runner has the volume", async || {
        let read = get("read/data/notes").await.ok()?;
        (read == (200, "onetwo".to_owned())).then_some(())
    })
    .await
    .with_context(|| platform.log())?;
    ensure!(get("list/").await?.0 == 500, "nothing else is seen");
    role::done(&["down"], &platform.data()).await?;
    let home = platform.data().join("volumes").join(&id);
    ensure!(!mounted(&home.join("volume.img"))?, "and nobody has it");
    Ok(())
}

/// Writes, reads and fills as a user of its own, to whom the volume is given.
fn image(version: &str) -> Image {
    let plain = "printf 'content-type: text/plain\\r\\n\\r\\n'";
    let write =
        format!("#!/bin/sh\necho \"$QUERY_STRING\" >> /keep/kept; code=$?; {plain}; echo $code\n");
    let read = format!("#!/bin/sh\n{plain}; ls -n /keep | grep -c lost; cat /keep/kept\n");
    let fill = format!(
        "#!/bin/sh\nhead -c 40000000 /dev/zero | cat > /keep/full; code=$?; : > /keep/full; {plain}; echo $code\n"
    );
    Image::script("trap 'exit 0' TERM; httpd -f -p $PORT -h /data & wait")
        .with("User", json!("1000:1000"))
        .file("data/index.html", 0o644, format!("{version}\n"))
        .file("data/cgi-bin/write", 0o755, write)
        .file("data/cgi-bin/read", 0o755, read)
        .file("data/cgi-bin/fill", 0o755, fill)
}

struct Site {
    platform: Platform,
    folder: PathBuf,
    id: String,
}

impl Site {
    async fn push(&self, version: &str, size: &str) -> anyhow::Result<()> {
        write(&self.folder, version, size)?;
        self.platform.succeed(&self.folder, &["push"]).await?;
        Ok(())
    }

    async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        self.platform.get(&format!("/app/{}/{path}", self.id)).await
    }

    async fn reads(&self, expected: &str) -> anyhow::Result<()> {
        let read = self.get("cgi-bin/read").await?;
        ensure!(read == (200, format!("0\n{expected}")), "{read:?}");
        Ok(())
    }

    fn image(&self) -> PathBuf {
        let volumes = self.platform.data().join("volumes");
        volumes.join(&self.id).join("volume.img")
    }
}

fn write(folder: &Path, version: &str, size: &str) -> anyhow::Result<()> {
    image(version).save_oci(&folder.join("keeper.tar"))?;
    let manifest = format!(
        "[app]\nname = \"keeper\"\n\n[build]\nimage = \"oci-archive:keeper.tar\"\n\n[runtime]\n\
         memory = \"64MiB\"\nport = 3000\nhealth.path = \"/index.html\"\n\
         volume = {{ mount = \"/keep\", size = \"{size}\" }}\n"
    );
    Ok(std::fs::write(folder.join("tabbify.toml"), manifest)?)
}

async fn kept(dockerd: &Dockerd) -> anyhow::Result<()> {
    let before = dockerd.holds()?;
    let address = dockerd.address();
    let platform = Platform::start_in("", &[("DOCKER_HOST", &address)]).await?;
    let folder = platform.scratch("keeper");
    std::fs::create_dir(&folder)?;
    write(&folder, "one", "16MiB")?;
    platform.succeed(&folder, &["push"]).await?;
    let id = platform.status(&folder).await?["id"]
        .as_str()
        .context("id")?
        .to_owned();
    let site = Site {
        platform,
        folder,
        id,
    };
    ensure!(site.get("cgi-bin/write?one").await? == (200, "0\n".to_owned()));
    site.reads("one\n").await?;

    site.push("two", "24MiB").await.context("deployed again")?;
    ensure!(site.get("index.html").await? == (200, "two\n".to_owned()));
    site.reads("one\n").await?;
    ensure!(std::fs::metadata(site.image())?.len() == 24 << 20);
    ensure!(site.get("cgi-bin/write?two").await? == (200, "0\n".to_owned()));
    site.platform.succeed(&site.folder, &["restart"]).await?;
    site.reads("one\ntwo\n").await.context("restarted")?;

    killed(&site, dockerd).await.context("killed")?;
    let full = site.get("cgi-bin/fill").await?;
    ensure!(full == (200, "1\n".to_owned()), "{full:?}");
    let logs = site.platform.succeed(&site.folder, &["logs"]).await?;
    ensure!(logs.contains("No space left on device"), "{logs}");
    site.reads("one\ntwo\n").await.context("filled")?;
    listed(&site).await?;

    role::done(&["down"], &site.platform.data()).await?;
    ensure!(dockerd.holds()? == before, "{:?}", dockerd.holds()?);
    ensure!(site.image().is_file(), "what it keeps is there");
    ensure!(!mounted(&site.image())?, "and nobody has it");
    Ok(())
}

/// Whether any device has the file.
fn mounted(image: &Path) -> anyhow::Result<bool> {
    let devices = std::fs::read_dir("/sys/block")?.flatten();
    let mut files =
        devices.filter_map(|it| std::fs::read_to_string(it.path().join("loop/backing_file")).ok());
    Ok(files.any(|file| file.trim_end() == image.to_string_lossy()))
}

/// A runner that is killed has its container removed before the next has the volume.
async fn killed(site: &Site, dockerd: &Dockerd) -> anyhow::Result<()> {
    let containers = || dockerd.client(&["ps", "--all", "--quiet"]);
    let old = containers()?;
    for pid in runners(&site.platform.data())? {
        let killed = Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()?;
        ensure!(killed.success());
    }
    until("another container has the volume", async || {
        let now = containers().ok()?;
        let read = site.get("cgi-bin/read").await.ok()?;
        let there = read == (200, "0\none\ntwo\n".to_owned());
        (there && now.len() == 1 && now != old).then_some(())
    })
    .await
    .with_context(|| site.platform.log())
}

/// People see what there is, and remove what nobody has.
async fn listed(site: &Site) -> anyhow::Result<()> {
    let Site {
        platform, folder, ..
    } = site;
    let list = platform.json(folder, &["volumes", "list"]).await?;
    let volume = &list["volumes"][0];
    ensure!(
        volume["size"] == "24MiB" && volume["held_by"].is_u64(),
        "{list}"
    );
    let machine = volume["machine"].as_str().context("a machine")?;
    let line = ["volumes", "rm", "keeper", machine, "--confirm"];
    for (confirm, why) in [
        ("other", "is not the app's name"),
        ("keeper", "has the volume"),
    ] {
        let line = [&line[..], &[confirm]].concat();
        let output = platform.run(folder, &line).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(why), "{said}");
    }
    ensure!(site.image().is_file());
    Ok(())
}
