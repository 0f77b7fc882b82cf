//! What cannot run, and what ends badly: each with a reason, and with nothing left.

use std::time::Duration;

use serde_json::json;
use tabbify_microvm::order::Status;
use tabbify_microvm::{Acceleration, Ending, Qemu, Source, Vm, VmError};
use tabbify_process::SystemClock;

use crate::support::Host;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_start_says_why() {
    let Some(host) = Host::find("what_does_not_start_says_why").unwrap() else {
        return;
    };
    let check = async |settings: serde_json::Value, says: &str| {
        let booted = host.boot(settings, |_, _| {}).await;
        let error = booted.map(drop).unwrap_err();
        assert!(error.is_of_the_app(), "{error}");
        let text = tabbify_process::chain(&error).to_string();
        assert!(text.contains(says), "{text} does not say {says}");
        assert!(!host.dir.path().join("machine").exists());
    };
    check(
        json!({"Cmd": ["/bin/none"]}),
        "/bin/none is not in the image",
    )
    .await;
    check(
        json!({"Cmd": ["/bin/app"], "User": "nobody"}),
        "no user \"nobody\"",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_out_of_memory_says_so() {
    let Some(host) = Host::find("a_guest_out_of_memory_says_so").unwrap() else {
        return;
    };
    let eats = json!({"Entrypoint": ["/bin/app", "eat"]});
    let (mut running, machine) = host.boot(eats, |_, _| {}).await.unwrap();
    let expected = Ending::Exited {
        status: Status::Signal(9),
        out_of_memory: true,
    };
    assert_eq!(running.over().await.unwrap(), expected);
    assert!(!machine.directory.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_forks_without_end_is_ended() {
    let Some(host) = Host::find("a_guest_that_forks_without_end_is_ended").unwrap() else {
        return;
    };
    let forks = json!({"Entrypoint": ["/bin/app", "forks"]});
    let (mut running, machine) = host.boot(forks, |_, _| {}).await.unwrap();
    running.printed(Source::Stdout, "forked").await.unwrap();
    // Whether its init still gets a turn is the guest's affair; the host does not depend on it.
    let ending = running.vm.stop(15, Duration::from_secs(1)).await;
    assert!(
        matches!(
            ending,
            Ending::Killed | Ending::Exited { .. } | Ending::Crashed { .. }
        ),
        "{ending:?}"
    );
    assert!(!machine.directory.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_panics_is_a_crash_with_its_last_words() {
    let Some(host) = Host::find("a_kernel_that_panics_is_a_crash_with_its_last_words").unwrap()
    else {
        return;
    };
    let serves = json!({"Entrypoint": ["/bin/app", "serve"]});
    let (mut running, machine) = host.boot(serves, |_, _| {}).await.unwrap();
    running.printed(Source::Stderr, "serving").await.unwrap();
    running.exec(&["crash"]).await.unwrap_err();
    let ending = running.over().await.unwrap();
    let Ending::Crashed { console } = &ending else {
        panic!("{ending:?} {}", running.all(Source::Stdout));
    };
    assert!(console.contains("Kernel panic"), "{console}");
    assert!(!machine.directory.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_lacks_something_says_what() {
    let Some(host) = Host::find("a_host_that_lacks_something_says_what").unwrap() else {
        return;
    };
    let (image, root) = host
        .image(&json!({"Entrypoint": ["/bin/app", "serve"]}))
        .unwrap();
    let app = tabbify_microvm::App {
        process: tabbify_microvm::order::Process {
            command: image.config().command(&[]).unwrap(),
            env: Vec::new(),
            user: String::new(),
            working_dir: String::new(),
        },
        hostname: "shop".to_owned(),
        scratch: tabbify_types::ByteSize::mib(16),
        volume: None,
        files: Vec::new(),
    };
    let machine = host.machine(root.path());
    let refused = async |qemu: Qemu, machine: &tabbify_microvm::Machine| {
        let booted = Vm::boot(&qemu, machine, app.clone(), &SystemClock, &host.tasks).await;
        let error = booted.map(drop).unwrap_err();
        assert!(
            !machine.directory.exists() && !error.is_of_the_app(),
            "{error}"
        );
        error
    };
    let mut assets = host.assets.clone();
    assets.kernel = "/no/such/vmlinuz".into();
    let error = refused(Qemu::new(assets, Acceleration::Tcg), &machine).await;
    assert!(
        matches!(error, VmError::Kernel { .. }) && error.to_string().contains("tabbify doctor"),
        "{error}"
    );

    let mut assets = host.assets.clone();
    assets.modules = Some(host.dir.path().join("roots"));
    let error = refused(Qemu::new(assets, Acceleration::Tcg), &machine).await;
    assert!(error.to_string().contains("roots"), "{error}");

    let mut without_root = machine.clone();
    without_root.root = "/no/such/root,file".into();
    let error = refused(host.qemu(), &without_root).await;
    assert!(matches!(error, VmError::Monitor { .. }), "{error}");
    assert!(error.to_string().contains("/no/such/root,file"), "{error}");

    // A kernel that is none: QEMU finds nothing to start.
    let mut assets = host.assets.clone();
    assets.kernel = host.dir.path().join("image.tar");
    let error = refused(Qemu::new(assets, Acceleration::Tcg), &machine).await;
    assert!(matches!(error, VmError::Monitor { .. }), "{error}");
}
