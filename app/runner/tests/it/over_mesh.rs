//! What the runner fetches over its mesh: what was published, asked for until it comes, and nothing that
//! was refused or is not it.

use std::net::SocketAddrV6;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use tabbify_api::artifact::{ARTIFACTS_PORT, file_key};
use tabbify_api::mesh::PeerRecord;
use tabbify_mesh::{Config, Mesh, PrivateKey};
use tabbify_process::{Importance, Tasks};
use tabbify_registry::{Limits, Service};
use tabbify_runner::artifact::{Store, fetch, open};
use tabbify_runner::peers::Peers;
use tabbify_types::{AppId, AppUla, HostUla, VersionNumber};

use crate::artifact::{boot, publish};
use crate::harness::watched;
use crate::platform::{Fallible, OnMesh};

/// An instance of an app, and the machine with the artifacts.
struct Site {
    dir: tempfile::TempDir,
    app: AppId,
    tasks: Tasks,
    machine: Mesh,
    mesh: Mesh,
}

fn endpoint(
    address: std::net::Ipv6Addr,
    tasks: &Tasks,
) -> Fallible<(Mesh, Arc<Peers>, PeerRecord)> {
    let key = PrivateKey::generate();
    let (public, peers) = (key.public(), Arc::new(Peers::default()));
    let config = Config::new(key, vec![address], ([127, 0, 0, 1], 0).into());
    let mesh = Mesh::bind(config, Arc::clone(&peers) as _, tasks)?;
    let at = mesh.underlay_addr()?;
    let record = PeerRecord::unrestricted(public, vec![address], vec![at]);
    Ok((mesh, peers, record))
}

impl Site {
    fn new() -> Fallible<Self> {
        let (app, tasks) = (AppId::mint(), Tasks::new());
        let (machine, one, there) = endpoint(HostUla::new(1, 1).addr(), &tasks)?;
        let (mesh, other, here) = endpoint(AppUla::derive(app).addr(), &tasks)?;
        one.set(vec![here]);
        other.set(vec![there]);
        Ok(Self {
            dir: tempfile::tempdir()?,
            app,
            tasks,
            machine,
            mesh,
        })
    }

    fn store(&self) -> Fallible<Box<dyn Store>> {
        let address = SocketAddrV6::new(HostUla::new(1, 1).addr(), ARTIFACTS_PORT, 0, 0);
        let opened = open(&format!("mesh:{address}"), &self.mesh, &self.tasks);
        opened.map_err(|failure| failure.detail.into())
    }

    fn serve(&self) -> Fallible<Service> {
        let objects = self.dir.path().join("objects");
        let store = Arc::new(LocalFileSystem::new_with_prefix(objects)?);
        let service = Service::new(store, &Limits::default(), &self.tasks);
        let listener = OnMesh::new(self.machine.listen(ARTIFACTS_PORT)?);
        let serving = service.clone().serve(listener);
        self.tasks.spawn("registry", Importance::Detached, serving);
        Ok(service)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_comes_even_if_nobody_is_there_at_first() {
    let site = Site::new().unwrap();
    let entry: Vec<u8> = (0..2_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    let digest = publish(&site.dir.path().join("objects"), site.app, &entry).unwrap();
    let boot = boot(site.dir.path(), site.app, digest).unwrap();
    let store = site.store().unwrap();
    let serving = async {
        // The first attempt finds a closed port.
        while site.machine.stats().sessions == 0 {
            tokio::task::yield_now().await;
        }
        site.serve()
    };
    let (fetched, service) = tokio::join!(watched(fetch(&boot, &*store)), watched(serving));
    assert!(fetched.unwrap().unwrap() == entry);
    assert_eq!(service.unwrap().unwrap().stats().served, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_it_is_refused() {
    let site = Site::new().unwrap();
    let objects = site.dir.path().join("objects");
    let digest = publish(&objects, site.app, b"the entry").unwrap();
    let good = boot(site.dir.path(), site.app, digest).unwrap();
    let service = site.serve().unwrap();
    let store = site.store().unwrap();
    assert_eq!(fetch(&good, &*store).await.unwrap(), &b"the entry"[..]);

    let path = objects.join(file_key(site.app, VersionNumber(1), "app.wasm"));
    std::fs::write(&path, "the antry").unwrap();
    let failure = fetch(&good, &*store).await.unwrap_err();
    assert!(failure.detail.contains("has digest"), "{failure:?}");
    std::fs::remove_file(&path).unwrap();
    let failure = fetch(&good, &*store).await.unwrap_err();
    assert!(
        failure.detail.contains("is not in the object store"),
        "{failure:?}"
    );

    // Another app's: refused at once, however often it would be asked for.
    let other = AppId::mint();
    let digest = publish(&objects, other, b"the entry").unwrap();
    let foreign = boot(site.dir.path(), other, digest).unwrap();
    let failure = fetch(&foreign, &*store).await.unwrap_err();
    assert!(failure.detail.contains("is refused: "), "{failure:?}");
    assert_eq!(service.stats().denied, 1);

    let list = file_key(site.app, VersionNumber(1), "artifact.json");
    let failure = store.get(&list, 3).await.unwrap_err();
    assert!(
        failure.detail.ends_with("bytes, more than 3"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_store_elsewhere_is_no_store() {
    let site = Site::new().unwrap();
    for bad in [
        "mesh:",
        "mesh:[::1]",
        "mesh:10.0.0.1:5000",
        "mesh:host:5000",
        "s3://bucket",
    ] {
        let failure = open(bad, &site.mesh, &site.tasks).unwrap_err();
        assert!(failure.detail.contains("URL"), "{bad}: {}", failure.detail);
    }
}
