//! Which app a folder is: lock files, taken names, and two pushes at once.

use std::process::Stdio;

use expect_test::expect;
use tabbify_api::{ErrorCode, Problem};

use crate::node::{Fault, Node};
use crate::person::Person;

fn lock_text(node: &Node, app: tabbify_types::AppId) -> String {
    let platform = node.state().platform.to_string();
    format!("version = 1\n[server.\"{platform}\"]\napp_id = \"{app}\"\nlatest_version = 9\n")
}

#[test]
fn a_taken_name_and_its_adoption() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    let app = node.state().add_app("shop", 4);
    person.tcli(&["push"]).unwrap().check(2, &expect![[r#"
        --- stderr
        App "shop" exists and this folder has no tabbify.lock. Yours? tcli push --app shop. New? Rename it.
    "#]]);
    assert_eq!(person.files().unwrap(), ["shop.wasm", "tabbify.toml"]);
    person.tcli(&["push", "--app", "shop"]).unwrap().check(
        0,
        &expect![[r#"
            shop v4 → v5  http://shop.localhost:8090  private: `tcli open` signs you in
            --- stderr
            ✓ 2 files 107 B  <t> s
            ✓ placed  <t> s
            ✓ started  <t> s
            ✓ healthy  <t> s
            ✓ shifted  <t> s
        "#]],
    );
    assert!(person.get("tabbify.lock").contains(&app.to_string()));
    assert!(person.get("tabbify.lock").contains("latest_version = 5"));
    // From now on the lock file says it.
    assert_eq!(person.tcli(&["push"]).unwrap().exit, 0);
    assert_eq!(node.count("POST /v1/apps "), 0);
}

#[test]
fn the_platform_has_the_last_word_on_names() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    let taken = Problem::new(ErrorCode::NameTaken, "shop");
    node.fail("POST /v1/apps", 1, Fault::Refuse(taken));
    let document = person.tcli(&["push", "--json"]).unwrap().json();
    expect![[r#"{"code":"name_taken","exit":2,"fix":"Yours? tcli push --app shop. New? Rename it.","what":"App \"shop\" exists and this folder has no tabbify.lock."}"#]].assert_eq(&document["error"].to_string());
}

#[test]
fn a_lock_file_from_another_app() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    let blog = node.state().add_app("blog", 1);
    person.put("tabbify.lock", lock_text(&node, blog)).unwrap();
    person.tcli(&["push"]).unwrap().check(2, &expect![[r#"
        --- stderr
        tabbify.lock names app "blog" (<id>), and tabbify.toml says app.name = "shop". Another app's file? Remove it, and tcli push makes a new app. Renamed? An app keeps its name: set it back to "blog".
    "#]]);
    person
        .put(
            "tabbify.lock",
            lock_text(&node, tabbify_types::AppId::mint()),
        )
        .unwrap();
    let lock = person.get("tabbify.lock");
    person.tcli(&["push"]).unwrap().check(2, &expect![[r#"
        --- stderr
        tabbify.lock names app <id>, which <server> does not know. Another app's file? Remove tabbify.lock, and tcli push makes a new app.
    "#]]);
    person.tcli(&["status"]).unwrap().check(2, &expect![[r#"
        --- stderr
        tabbify.lock names app <id>, which <server> does not know. Another app's file? Remove tabbify.lock, and tcli push makes a new app.
    "#]]);
    assert_eq!(person.get("tabbify.lock"), lock);
    assert!(node.state().versions.is_empty());
    person
        .put("tabbify.lock", "version = 1\n<<<<<<< HEAD\n")
        .unwrap();
    person.tcli(&["push"]).unwrap().check(
        2,
        &expect![[r#"
        --- stderr
        tabbify.lock:2: a merge conflict is not resolved; keep one side and delete the markers
    "#]],
    );
}

#[test]
fn a_lock_file_of_another_platform_does_not_count() {
    let (node, other) = (Node::start().unwrap(), Node::start().unwrap());
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    let elsewhere = other.state().add_app("shop", 1);
    person
        .put("tabbify.lock", lock_text(&other, elsewhere))
        .unwrap();
    assert_eq!(person.tcli(&["push"]).unwrap().exit, 0);
    let lock = person.get("tabbify.lock");
    assert!(
        lock.contains(&elsewhere.to_string()),
        "the other entry stays: {lock}"
    );
    assert!(
        lock.contains(&node.state().apps[0].id.to_string()),
        "{lock}"
    );
}

#[test]
fn a_taken_address_is_minted_again_but_not_for_ever() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    let taken = || Fault::Refuse(Problem::new(ErrorCode::AddressTaken, "fd5a:1f02::1"));
    node.fail("POST /v1/apps", 4, taken());
    assert_eq!(person.tcli(&["push", "--no-deploy"]).unwrap().exit, 0);
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    person
        .put("tabbify.toml", "[app]\nname = \"cart\"\n")
        .unwrap();
    node.state().asked.clear();
    node.fail("POST /v1/apps", u32::MAX, taken());
    let document = person.tcli(&["push", "--json"]).unwrap().json();
    assert_eq!(document["error"]["code"], "address_taken", "{document}");
    // Five are minted; a request whose answer was lost on its way is sent again.
    let asked = node.count("POST /v1/apps");
    assert!((5..=10).contains(&asked), "{asked}");
    assert!(!person.files().unwrap().contains(&"tabbify.lock".to_owned()));
}

/// Both have looked and found no app before either registers one: the builds wait for each other.
#[test]
fn two_pushes_at_once_are_one_app_and_two_versions() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    let meet = "command = '''touch here.$$; until [ $(ls here.* | wc -l) = 2 ]; do :; done'''\n";
    person
        .put("tabbify.toml", person.get("tabbify.toml") + meet)
        .unwrap();
    let start = || {
        person
            .command(&["push"])
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
    };
    let pushes = [start().unwrap(), start().unwrap()];
    for push in pushes {
        let run = person.run_of(&push.wait_with_output().unwrap());
        assert_eq!(run.exit, 0, "{run:?}");
    }
    let state = node.state();
    assert_eq!((state.apps.len(), state.versions.len()), (1, 2));
    assert!(state.versions.values().all(|version| version.committed));
    assert!(person.get("tabbify.lock").contains("latest_version = 2"));
}
