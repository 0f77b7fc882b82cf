//! `tcli push`: what a good one does, and what is refused before anything is sent.

use expect_test::expect;
use serde_json::json;
use tabbify_manifest::Manifest;

use crate::node::Node;
use crate::person::{COMPONENT, Person};

#[test]
fn the_first_and_the_second() {
    let node = Node::start().unwrap();
    let person = Person::with_key(&node).unwrap().with_component().unwrap();
    let manifest = person.get("tabbify.toml");
    person.tcli(&["push"]).unwrap().check(
        0,
        &expect![[r#"
        shop v1  http://shop.localhost:8090  private: `tcli open` signs you in
        --- stderr
        ✓ 2 files 107 B  <t> s
        ✓ placed  <t> s
        ✓ started  <t> s
        ✓ healthy  <t> s
        ✓ shifted  <t> s
    "#]],
    );
    expect![[r##"
        # Written by tcli. Commit this file: it says which app this folder is.
        version = 1

        [server."<platform>"]
        app_id = "<id>"
        latest_version = 1
    "##]]
    .assert_eq(&person.mask(&person.get("tabbify.lock")));
    person.tcli(&["push"]).unwrap().check(
        0,
        &expect![[r#"
        shop v1 → v2  http://shop.localhost:8090  private: `tcli open` signs you in
        --- stderr
        ✓ 2 files 107 B  <t> s
        ✓ placed  <t> s
        ✓ started  <t> s
        ✓ healthy  <t> s
        ✓ shifted  <t> s
    "#]],
    );
    assert_eq!(
        person.get("tabbify.toml"),
        manifest,
        "the user's own file is never edited"
    );
    assert_eq!(
        person.files().unwrap(),
        ["shop.wasm", "tabbify.lock", "tabbify.toml"]
    );
    assert!(person.get("tabbify.lock").contains("latest_version = 2"));

    let state = node.state();
    assert_eq!(
        (state.apps.len(), state.versions.len(), state.deploys.len()),
        (1, 2, 2)
    );
    let id = state.apps[0].id;
    assert_eq!(id.uuid().get_version_num(), 7);
    for version in state.versions.values() {
        assert!(version.committed);
        assert_eq!(version.files["app.wasm"], COMPONENT);
        let stamped = std::str::from_utf8(&version.files["tabbify.toml"]).unwrap();
        let parsed = Manifest::parse(stamped, "tabbify.toml").unwrap();
        assert_eq!(parsed.manifest.app.id, Some(id));
        assert!(stamped.contains("# ours"), "comments stay: {stamped}");
    }
}

#[test]
fn as_json() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    let document = person.tcli(&["push", "--json"]).unwrap().json();
    let keys: Vec<_> = document.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["app", "operation", "version"]);
    assert_eq!(document["version"], 1);
    assert_eq!(document["app"]["serving"], 1);
    assert_eq!(document["operation"]["status"], "succeeded");
    assert_eq!(document["operation"]["steps"].as_array().unwrap().len(), 4);
}

#[test]
fn without_deploy() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    person.tcli(&["push", "--no-deploy"]).unwrap().check(
        0,
        &expect![[r#"
            shop v1 is published, nothing serves yet: tcli deploy v1
            --- stderr
            ✓ 2 files 107 B  <t> s
        "#]],
    );
    assert_eq!(node.count("/v1/deploys"), 0);
    let document = person
        .tcli(&["push", "--no-deploy", "--json"])
        .unwrap()
        .json();
    assert_eq!(
        (&document["version"], &document["operation"]),
        (&json!(2), &json!(null))
    );
}

#[test]
fn a_plan_changes_nothing() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    person.tcli(&["push", "--plan"]).unwrap().check(
        0,
        &expect![[r#"
            Plan for <server>; nothing was changed.
            app     shop  new, with an id of its own
            build   nothing to run
            upload  tabbify.toml, shop.wasm as app.wasm (8 B)
            deploy  the new version
        "#]],
    );
    let document = person
        .tcli(&["push", "--dry-run", "--json"])
        .unwrap()
        .json();
    assert_eq!(
        document["plan"]["app"],
        json!({ "name": "shop", "id": null, "new": true })
    );
    assert_eq!(document["plan"]["files"][0]["now"]["size"], COMPONENT.len());
    assert_eq!(person.files().unwrap(), ["shop.wasm", "tabbify.toml"]);

    assert_eq!(person.tcli(&["push"]).unwrap().exit, 0);
    let lock = person.get("tabbify.lock");
    let command = "command = \"touch built; false\"\n";
    person
        .put("tabbify.toml", person.get("tabbify.toml") + command)
        .unwrap();
    let before = node.state().asked.len();
    person.tcli(&["push", "--plan"]).unwrap().check(
        0,
        &expect![[r#"
            Plan for <server>; nothing was changed.
            app     shop  <id>  <address>
            build   touch built; false
            upload  tabbify.toml, shop.wasm as app.wasm (8 B before the build)
            deploy  the new version, in place of v1
        "#]],
    );
    assert_eq!(person.get("tabbify.lock"), lock);
    assert_eq!(
        person.files().unwrap(),
        ["shop.wasm", "tabbify.lock", "tabbify.toml"]
    );
    let asked = node.state().asked[before..].to_vec();
    assert!(
        asked.iter().all(|asked| asked.starts_with("GET ")),
        "{asked:?}"
    );
}

#[test]
fn every_mistake_of_the_manifest_and_nothing_sent() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    person.tcli(&["push"]).unwrap().check(
        2,
        &expect![[r#"
        --- stderr
        This folder has no tabbify.toml. Run: tcli init
    "#]],
    );
    let text = "[app]\nname = \"Shop\"\n[runtime]\nmemry = \"64MiB\"\nstop_timeout = 5\n";
    person.put("tabbify.toml", text).unwrap();
    person.tcli(&["push"]).unwrap().check(2, &expect![[r#"
        --- stderr
        tabbify.toml:2: app.name = "Shop" is not an app name; write "shop", or another name: use 1 to 63 of a-z 0-9 -, starting and ending with a letter or digit, without --
        tabbify.toml:4: runtime.memry is not a known key; did you mean runtime.memory?
        tabbify.toml:5: runtime.stop_timeout = 5 has no unit; write "5s" or another unit
        Nothing was uploaded.
    "#]]);
    let document = person.tcli(&["push", "--json"]).unwrap().json();
    assert_eq!(document["error"]["code"], "invalid_manifest");
    assert_eq!(document["error"]["exit"], 2);
    let text = "[app]\nname = \"shop\"\n[build]\nwasm = \"x.wasm\"\n[release]\ncommand = [\"true\"]\n\
                [events]\nemit = [\"chat\"]\n";
    person.put("tabbify.toml", text).unwrap();
    person.tcli(&["push"]).unwrap().check(
        2,
        &expect![[r#"
        --- stderr
        tabbify.toml:6: [release] command is not supported yet; remove it
        tabbify.toml:8: [events] emit is not supported yet; remove it
        Nothing was uploaded.
    "#]],
    );
    assert_eq!(node.state().asked, [""; 0], "nothing was sent");
    assert_eq!(person.files().unwrap(), ["tabbify.toml"]);
}

#[test]
fn the_legacy_form_is_upgraded_and_says_so() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    let legacy = "[app]\nname = \"shop\"\nversion = \"1\"\n[lifecycle]\nmode = \"always-on\"\n\
                  [runtime]\ntype = \"wasm-http\"\nentry = \"shop.wasm\"\nmemory_mb = 32\n";
    person.put("manifest.toml", legacy).unwrap();
    person.put("shop.wasm", COMPONENT).unwrap();
    let run = person.tcli(&["push"]).unwrap();
    assert_eq!(run.exit, 0, "{run:?}");
    assert!(run.err.contains("manifest.toml:"), "{}", run.err);
    let state = node.state();
    let uploaded = &state.versions.values().next().unwrap().files["tabbify.toml"];
    let uploaded = std::str::from_utf8(uploaded).unwrap();
    assert_eq!(Manifest::parse(uploaded, "tabbify.toml").unwrap().notes, []);
}

#[test]
fn what_is_not_a_component() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    person.put("shop.wasm", b"\0asm\x01\0\0\0rest").unwrap();
    person.tcli(&["push"]).unwrap().check(1, &expect![[r#"
        --- stderr
        shop.wasm is a core WebAssembly module, not a component (build.wasm, tabbify.toml:5). Build it for wasm32-wasip2, whose output is a component.
    "#]]);
    person.put("shop.wasm", b"\x7fELF\x02\x01\x01\0").unwrap();
    person.tcli(&["push"]).unwrap().check(1, &expect![[r#"
        --- stderr
        shop.wasm is not WebAssembly: it begins with 7f 45 4c 46 02 01 01 00 (build.wasm, tabbify.toml:5). Build it for wasm32-wasip2, whose output is a component.
    "#]]);
    person.put("shop.wasm", b"").unwrap();
    person.tcli(&["push"]).unwrap().check(1, &expect![[r#"
        --- stderr
        shop.wasm is empty (build.wasm, tabbify.toml:5). Build it for wasm32-wasip2, whose output is a component.
    "#]]);
    std::fs::remove_file(person.path("shop/shop.wasm")).unwrap();
    person.tcli(&["push"]).unwrap().check(1, &expect![[r#"
        --- stderr
        shop.wasm is not there (build.wasm, tabbify.toml:5). Build it first, or name the command that does in build.command.
    "#]]);
    person.tcli(&["push", "--plan"]).unwrap().check(
        1,
        &expect![[r#"
            --- stderr
            shop.wasm is not there (build.wasm, tabbify.toml:5). Nothing was changed.
        "#]],
    );
    assert_eq!(
        node.count("POST"),
        0,
        "no app is registered for what cannot be pushed"
    );
    assert_eq!(person.files().unwrap(), ["tabbify.toml"]);
}

fn put_build(person: &Person, command: &str) -> std::io::Result<()> {
    let text = format!(
        "[app]\nname = \"shop\"\n[build]\nwasm = \"out.wasm\"\ncontext = \"sub\"\ncommand = '{command}'\n"
    );
    person.put("tabbify.toml", text)?;
    std::fs::create_dir_all(person.path("shop/sub"))
}

#[test]
fn builds() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    put_build(
        &person,
        r#"printf "\0asm\15\0\1\0" > ../out.wasm; echo "token=$TABBIFY_TOKEN""#,
    )
    .unwrap();
    person.tcli(&["push"]).unwrap().check(
        0,
        &expect![[r#"
        shop v1  http://shop.localhost:8090  private: `tcli open` signs you in
        --- stderr
        token=
        ✓ built  <t> s
        ✓ 2 files 193 B  <t> s
        ✓ placed  <t> s
        ✓ started  <t> s
        ✓ healthy  <t> s
        ✓ shifted  <t> s
    "#]],
    );

    put_build(
        &person,
        "for i in $(seq 40); do echo out $i; done; echo why >&2; exit 7",
    )
    .unwrap();
    let run = person.tcli(&["push"]).unwrap();
    let told = run.err.split_once("The build failed").unwrap().1;
    assert!(
        run.err.starts_with("out 1\n"),
        "the output is shown as it comes: {}",
        run.err
    );
    assert!(told.contains("exit status: 7"), "{told}");
    assert!(!told.contains("| out 2\n"), "{told}");
    let end = "  | out 40\n  | why\nNothing was uploaded.\n";
    assert!(told.ends_with(end), "both streams keep their order: {told}");
    assert_eq!(run.exit, 1);
    assert_eq!(
        node.state().versions.len(),
        1,
        "only the first push uploaded"
    );

    // As rustc 1.95 says it.
    let rustc = "error[E0463]: can't find crate for `std`\n  |\n  = note: the `wasm32-wasip2` target \
                 may not be installed\n  = help: consider downloading the target with `rustup \
                 target add wasm32-wasip2`\n";
    person.put("sub/rustc", rustc).unwrap();
    put_build(&person, "cat rustc >&2; exit 101").unwrap();
    let document = person.tcli(&["push", "--json"]).unwrap().json();
    expect![[r#"{"code":"build_failed","exit":1,"fix":"Run: rustup target add wasm32-wasip2","what":"Rust target wasm32-wasip2 is missing."}"#]].assert_eq(&document["error"].to_string());

    std::fs::remove_file(person.path("shop/out.wasm")).unwrap();
    put_build(&person, "true").unwrap();
    person.tcli(&["push"]).unwrap().check(1, &expect![[r#"
        --- stderr
        ✓ built  <t> s
        out.wasm is not there (build.wasm, tabbify.toml:4). The build did not put it there; in a cargo workspace, add --target-dir target to build.command.
    "#]]);
}
