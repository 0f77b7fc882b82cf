//! What is known of the host: its programs and files, and whether its KVM runs a guest.

use tabbify_microvm::{Acceleration, Finding, Qemu, doctor};

use crate::support::Host;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kvm_is_believed_when_a_guest_has_booted_under_it() {
    let Some(host) = Host::find("kvm_is_believed_when_a_guest_has_booted_under_it").unwrap() else {
        return;
    };
    let device = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    let auto = || Qemu::new(host.assets.clone(), Acceleration::Auto);
    let uses = auto().uses_kvm(&host.tasks).await.unwrap();
    let kvm = |findings: Vec<Finding>| {
        findings
            .into_iter()
            .find(|finding| finding.what == "KVM")
            .unwrap()
    };
    let finding = kvm(doctor(&host.assets, Acceleration::Auto));
    match (&device, uses) {
        (Err(_), uses) => assert!(!uses && finding.state.contains("/dev/kvm"), "{finding:?}"),
        (Ok(_), true) => assert_eq!(finding.state, "guests boot under it"),
        (Ok(_), false) => assert!(
            finding.state.contains("no guest boots") && finding.remedy.is_some(),
            "{finding:?}"
        ),
    }
    // The answer is kept: without an init nothing could boot to find out once more.
    let mut assets = host.assets.clone();
    assets.init = "/no/such/init".into();
    let again = Qemu::new(assets, Acceleration::Auto);
    assert_eq!(again.uses_kvm(&host.tasks).await.unwrap(), uses);
    let left = std::fs::read_dir(&host.assets.state).map(|entries| {
        entries
            .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir()))
            .count()
    });
    assert_eq!(left.unwrap_or(0), 0, "the machine that was tried is gone");
}

#[test]
fn the_doctor_names_what_is_missing_and_how_to_get_it() {
    let dir = tempfile::tempdir().unwrap();
    let assets = tabbify_microvm::Assets {
        kernel: dir.path().join("vmlinuz"),
        modules: Some(dir.path().join("modules")),
        init: dir.path().join("init"),
        monitor: Some(dir.path().join("qemu")),
        state: dir.path().join("state"),
    };
    let findings = doctor(&assets, Acceleration::Tcg);
    let missing: Vec<&Finding> = findings
        .iter()
        .filter(|finding| finding.remedy.is_some() && !finding.optional)
        .collect();
    for (what, remedy) in [
        ("/qemu", "apt-get install qemu-system-x86"),
        ("kernel (", "docs/operating/microvms.md"),
        ("init (", "tabbify-guest-init"),
        ("modules (", "lib/modules"),
    ] {
        let found = missing.iter().any(|finding| {
            finding.what.contains(what)
                && finding
                    .remedy
                    .as_ref()
                    .is_some_and(|text| text.contains(remedy))
        });
        assert!(found, "{what} in {findings:#?}");
    }
}
