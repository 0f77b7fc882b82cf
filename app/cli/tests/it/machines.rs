//! Machines: who there is, and how this one becomes one of them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::{fs, io};

use expect_test::expect;
use tabbify_api::machines::{MachineState, MachineView};
use tabbify_types::event::v1::Capability;
use tabbify_types::{HostUla, Tenant, Timestamp};

use crate::node::Node;
use crate::person::Person;

fn machine(name: &str, index: u16, state: MachineState, works: bool) -> MachineView {
    let tenant = if index == 1 {
        Tenant::system()
    } else {
        Tenant::main()
    };
    MachineView {
        host: name.parse().expect("INVARIANT: it is a name"),
        address: HostUla::new(1, index),
        tenant,
        tags: Vec::new(),
        state,
        since: Timestamp::from_secs(1_763_463_600),
        joined: Timestamp::from_secs(1_763_463_600),
        capabilities: vec![Capability {
            runtime: "wasm-\x1b[2Jhttp".to_owned(),
            works,
            detail: String::new(),
        }],
    }
}

#[test]
fn machines_and_whether_they_get_work() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    person.tcli(&["machines", "list"]).unwrap().check(
        0,
        &expect![[r#"
            <server> has no machines that you may see. Next: tabbify invite, on the platform's machine
        "#]],
    );
    node.state().machines = vec![
        machine("box2", 2, MachineState::Lost, true),
        machine("local", 1, MachineState::Ready, true),
        machine("spare", 3, MachineState::Drained, false),
    ];
    person.tcli(&["machines", "list"]).unwrap().check(
        0,
        &expect![[r#"
            NAME   STATE    SINCE                     RUNS          FOR   ADDRESS
            box2   lost     2025-11-18T11:00:00.000Z  wasm-[2Jhttp  main  fd5a:1f00:1:2::1
            local  ready    2025-11-18T11:00:00.000Z  wasm-[2Jhttp  all   fd5a:1f00:1:1::1
            spare  drained  2025-11-18T11:00:00.000Z  -             main  fd5a:1f00:1:3::1
        "#]],
    );
    let document = person.tcli(&["machines", "list", "--json"]).unwrap().json();
    assert_eq!(document["machines"][0]["state"], "lost");
}

/// tcli in a directory of its own, with nothing in PATH.
fn tcli_in(directory: &Path, line: &[&str]) -> io::Result<Output> {
    let mut command = Command::new(directory.join("tcli"));
    let command = command
        .args(line)
        .env_clear()
        .env("PATH", directory.join("none"));
    command.output()
}

#[test]
fn joining_is_the_servers_own_program() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(env!("CARGO_BIN_EXE_tcli"), dir.path().join("tcli")).unwrap();
    let missing = tcli_in(
        dir.path(),
        &["node", "join", "apps.example.com:8888", "--json"],
    )
    .unwrap();
    assert_eq!(missing.status.code(), Some(2));
    let said = String::from_utf8_lossy(&missing.stderr);
    assert!(
        said.contains("no program \"tabbify\"") && said.contains("copy tabbify"),
        "{said}"
    );

    let program = dir.path().join("tabbify");
    fs::write(&program, "#!/bin/sh\necho \"$@\"\nexit 7\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let check = |line: &[&str], expected: &str| {
        let ran = tcli_in(dir.path(), line).unwrap();
        // It is the program from there on: its output, its exit code.
        assert_eq!(ran.status.code(), Some(7), "{line:?}");
        assert_eq!(
            String::from_utf8_lossy(&ran.stdout),
            format!("{expected}\n")
        );
    };
    let host = "apps.example.com:8888";
    check(&["node", "join", host], "join apps.example.com:8888");
    check(
        &["node", "up", host, "--no-run", "--data-dir", "d"],
        "join apps.example.com:8888 --no-run --data-dir d",
    );
    check(
        &["node", "up", "--token-file", "t", host],
        "join --token-file t apps.example.com:8888",
    );
    check(&["node", "join", "--help"], "join --help");
}
