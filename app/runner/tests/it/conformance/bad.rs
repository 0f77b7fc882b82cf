//! What cannot be run: each with a reason that a person understands, and nothing of it is left.

use anyhow::ensure;
use tabbify_runner::runtime::Entry;
use tabbify_types::event::v1::FailureReason;

use super::site::Site;
use super::{Kind, has};

pub(super) async fn no_artifact_of_its_kind(site: &Site) -> anyhow::Result<()> {
    let (entry, reason) = match site.kind {
        Kind::WasmHttp => (
            Entry::Memory("not a component".into()),
            FailureReason::NotAComponent,
        ),
        Kind::Docker | Kind::Microvm => {
            let path = site.file("none.tar");
            std::fs::write(&path, "not an image")?;
            (Entry::File(path), FailureReason::Image)
        }
    };
    let tried = site.start_entry(entry, |_, _| {}).await?;
    let failure = tried.failure()?;
    ensure!(failure.reason == reason, "{failure:?}");
    Ok(())
}

pub(super) async fn no_program(site: &Site) -> anyhow::Result<()> {
    let tried = site.start(&[], |run, image| {
        // With secrets, what brings them is a container's first program, and starts.
        run.secrets.clear();
        image.command = vec!["/no/such".to_owned()];
    });
    let tried = tried.await?;
    let failure = tried.failure()?;
    ensure!(failure.reason == FailureReason::Image, "{failure:?}");
    has(&failure.detail, "/no/such")?;

    let path = site.file("empty.tar");
    tabbify_testing::image::Image::default()
        .empty()
        .save_oci(&path)?;
    let tried = site.start_entry(Entry::File(path), |_, _| {}).await?;
    let failure = tried.failure()?;
    ensure!(failure.reason == FailureReason::Image, "{failure:?}");
    has(&failure.detail.to_lowercase(), "entrypoint")
}

pub(super) async fn another_architecture(site: &Site) -> anyhow::Result<()> {
    let path = site.file("other.tar");
    site.image(&["serve"])
        .for_architecture("s390x")
        .save_docker(&path)?;
    let tried = site.start_entry(Entry::File(path), |_, _| {}).await?;
    let failure = tried.failure()?;
    ensure!(failure.reason == FailureReason::Image, "{failure:?}");
    has(&failure.detail, "is for linux/s390x, and this machine")
}

pub(super) async fn a_layer_that_leaves_the_image(site: &Site) -> anyhow::Result<()> {
    let path = site.file("traversal.tar");
    site.image(&["serve"]).traversing().save_docker(&path)?;
    let tried = site.start_entry(Entry::File(path), |_, _| {}).await?;
    let failure = tried.failure()?;
    ensure!(failure.reason == FailureReason::Image, "{failure:?}");
    Ok(())
}
