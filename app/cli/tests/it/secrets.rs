//! Secrets: values go in by standard input alone, and what a push needs is asked for before it sends.

use std::io::Write as _;
use std::process::Stdio;
use std::{io, thread};

use expect_test::expect;
use tabbify_api::secrets::VALUE_LEN_MAX;

use crate::node::Node;
use crate::person::{Person, Run};

/// Runs tcli with something on its standard input.
fn fed(person: &Person, args: &[&str], input: &[u8]) -> io::Result<Run> {
    let mut command = person.command(args);
    command.stdin(Stdio::piped());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let input = input.to_vec();
    // It may have read enough before we have written all.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| io::ErrorKind::Other)?;
    Ok(person.run_of(&output))
}

#[test]
fn set_list_and_remove() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    person.tcli(&["secrets", "list"]).unwrap().check(
        0,
        &expect![[r#"
            No secrets yet. Next: tcli secrets set NAME
        "#]],
    );
    fed(&person, &["secrets", "set", "api-key"], b"hunter2\n")
        .unwrap()
        .check(
            0,
            &expect![[r#"
            api-key v1 is set, and no app names it yet
        "#]],
        );
    node.state().secrets[0].apps = vec!["shop".parse().unwrap(), "till".parse().unwrap()];
    fed(&person, &["secrets", "set", "api-key"], b"hunter3\r\n").unwrap().check(
        0,
        &expect![[r#"
            api-key v2 is set; shop, till get it at the next start: tcli restart shop; tcli restart till
        "#]],
    );
    assert_eq!(node.state().values, [b"hunter2".as_slice(), b"hunter3"]);
    person.tcli(&["secrets", "list"]).unwrap().check(
        0,
        &expect![[r#"
            NAME     VERSION  CHANGED                   USED BY
            api-key  v2       2025-11-18T11:00:00.000Z  shop, till
        "#]],
    );
    let listed = person.tcli(&["secrets", "list", "--json"]).unwrap().json();
    assert_eq!(listed["secrets"][0]["version"], 2);
    person.tcli(&["secrets", "rm", "api-key"]).unwrap().check(
        0,
        &expect![[r#"
            api-key is removed; without it, these do not start again: shop, till
        "#]],
    );
    let gone = person.tcli(&["secrets", "rm", "api-key"]).unwrap();
    assert_eq!(gone.exit, 2);
    assert!(
        gone.err.contains("secret \"api-key\" does not exist"),
        "{gone:?}"
    );
}

#[test]
fn values_as_they_are() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    let exact = ["secrets", "set", "a", "--exact"];
    for (args, input, expected) in [
        (
            &exact[..3],
            b"two\n\n".as_slice(),
            Some(b"two\n".as_slice()),
        ),
        (&exact, b"two\n\n", Some(b"two\n\n")),
        (&exact, b"\0\xff\x1b[2J", Some(b"\0\xff\x1b[2J")),
        (&exact[..3], b"\n", None),
        (&exact, b"", None),
    ] {
        let run = fed(&person, args, input).unwrap();
        match expected {
            Some(expected) => {
                assert_eq!(run.exit, 0, "{run:?}");
                assert_eq!(node.state().values.pop().unwrap(), expected);
            }
            None => {
                assert_eq!(run.exit, 2, "{run:?}");
                assert!(run.err.contains("The value is empty."), "{run:?}");
            }
        }
        assert!(!run.err.contains("two") && !run.out.contains("two"));
    }
    let mut largest = vec![b'x'; VALUE_LEN_MAX];
    largest.push(b'\n');
    assert_eq!(fed(&person, &exact[..3], &largest).unwrap().exit, 0);
    largest.push(b'x');
    let run = fed(&person, &exact[..3], &largest).unwrap();
    assert!(
        run.exit == 2 && run.err.contains("more than 64 KiB"),
        "{run:?}"
    );
    assert_eq!(node.state().values.len(), 1);
}

#[test]
fn a_value_is_no_argument() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    let run = fed(&person, &["secrets", "set", "api-key=hunter2"], b"x").unwrap();
    run.check(
        2,
        &expect![[r#"
            --- stderr
            A value is no argument: every user of this machine can see it there. Take another value, and run: tcli secrets set api-key
        "#]],
    );
    for args in [
        &["secrets", "set", "hunter2 is it"][..],
        &["secrets", "rm", "hunter2/"],
    ] {
        let run = fed(&person, args, b"x").unwrap();
        assert!(run.exit == 2 && !run.err.contains("hunter2"), "{run:?}");
    }
    // Whoever is not signed in is told so before anything is read.
    let mut stranger = Person::new().unwrap();
    stranger.go_to(&node.url());
    let run = fed(&stranger, &["secrets", "set", "a"], b"x").unwrap();
    assert_eq!(run.exit, 2, "{run:?}");
    assert!(node.state().values.is_empty());
}

#[test]
fn a_push_asks_first() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    let manifest = person.get("tabbify.toml");
    let with = |secrets: &str| person.put("tabbify.toml", format!("{manifest}{secrets}"));
    with("\n[secrets]\nAPI_KEY = \"api-key\"\n").unwrap();
    person.tcli(&["push"]).unwrap().check(
        2,
        &expect![[r#"
            --- stderr
            Secret "api-key" (tabbify.toml:8) does not exist. Run: tcli secrets set api-key. Nothing was uploaded.
        "#]],
    );
    with("\n[secrets]\nAPI_KEY = \"api-key\"\nAGAIN = { name = \"api-key\" }\nOTHER = \"other\"\n")
        .unwrap();
    person.tcli(&["push"]).unwrap().check(
        2,
        &expect![[r#"
            --- stderr
            Secret "api-key" (tabbify.toml:9) does not exist.
            Secret "api-key" (tabbify.toml:8) does not exist.
            Secret "other" (tabbify.toml:10) does not exist.
            Run: tcli secrets set api-key; tcli secrets set other. Nothing was uploaded.
        "#]],
    );
    let document = person.tcli(&["push", "--json"]).unwrap().json();
    assert_eq!(document["error"]["code"], "secret_missing");
    assert!(node.state().apps.is_empty(), "nothing was changed");
    for name in ["api-key", "other"] {
        assert_eq!(
            fed(&person, &["secrets", "set", name], b"x").unwrap().exit,
            0
        );
    }
    assert_eq!(person.tcli(&["push"]).unwrap().exit, 0);

    // As a file, it is refused by name.
    with("\n[secrets]\nTLS = { name = \"api-key\", as = \"file\" }\n").unwrap();
    let refused = person.tcli(&["push"]).unwrap();
    assert_eq!(refused.exit, 2);
    assert!(
        refused
            .err
            .contains("secrets.TLS as a file is not supported yet"),
        "{refused:?}"
    );
}

#[test]
fn a_restart_is_a_new_instance_of_what_serves() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    let early = person.tcli(&["restart"]).unwrap();
    assert_eq!(early.exit, 2, "{early:?}");
    assert_eq!(person.tcli(&["push"]).unwrap().exit, 0);
    let again = person.tcli(&["restart", "--json"]).unwrap().json();
    assert_eq!(
        (&again["version"], &again["app"]["serving"]),
        (&1.into(), &1.into())
    );
    assert_eq!(person.tcli(&["restart", "shop"]).unwrap().exit, 0);
    assert_eq!(node.state().deploys.len(), 3);
}
