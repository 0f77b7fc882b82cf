//! The text of a checkpoint, and texts that are none.

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use proptest::sample::Index;

use super::*;

fn tree(size: u64) -> Tree {
    let mut tree = Tree::default();
    for n in 0..size {
        let mut frame = [0; 32];
        frame[..8].copy_from_slice(&n.to_le_bytes());
        tree.push(TreeHash::of_frame(FrameHash(frame)));
    }
    tree
}

fn root() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

fn log_key() -> LogKey {
    LogKey::certified(SecretKey::from_seed(&[2; 32]), &root())
}

fn trust() -> Trust {
    let mut trust = Trust::new(Anchor::Root(root().public()));
    trust
        .add(log_key().certificate())
        .expect("a certificate of ours");
    trust
}

fn checkpoint(frames: u64) -> Checkpoint {
    Checkpoint {
        platform: PlatformId::of(&root().public()),
        log_id: LogId([0xab; 16]),
        position: Position(frames + 3),
        frame: FrameHash([7; 32]),
        tree: tree(frames),
    }
}

fn signed(frames: u64) -> Signed {
    let signed = checkpoint(frames).sign(&log_key().secret, "here");
    signed.expect("a checkpoint can be signed")
}

/// The same text signed again, so that only what it says can be wrong.
fn resigned(change: impl Fn(&str) -> String) -> String {
    let text = change(&checkpoint(5).text());
    let name = origin(&checkpoint(5).platform);
    note::sign(&text, &name, &log_key().secret).expect("a text of lines")
}

#[test]
fn what_is_signed_is_read() {
    for frames in [1, 2, 3, 7, 8, 100] {
        let signed = signed(frames);
        let read = Checkpoint::open(&signed.note, &trust(), "here").unwrap();
        assert_eq!(read, signed);
        assert_eq!(read.checkpoint, checkpoint(frames));
        assert_eq!(read.checkpoint.frames(), frames);
    }
}

#[test]
fn the_text_is_the_one_in_the_documents() {
    let text = checkpoint(3).text();
    let expected = expect_text();
    assert_eq!(text, expected);
}

fn expect_text() -> String {
    // A tree of three has the peaks of two and of one.
    let [two, one] = [tree(2).root(), {
        let mut frame = [0; 32];
        frame[0] = 2;
        TreeHash::of_frame(FrameHash(frame))
    }];
    format!(
        "tabbify/{}\n3\n{}\nlog abababababababababababababababab\nposition 6\nframe {}\npeaks {two} {one}\n",
        PlatformId::of(&root().public()),
        tree(3).root(),
        "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
    )
}

#[test]
fn other_keys_and_platforms_do_not_count() {
    let note = signed(5).note;
    // Another root key vouches for nothing here.
    let other = SecretKey::from_seed(&[3; 32]);
    let foreign = LogKey::certified(SecretKey::from_seed(&[2; 32]), &other);
    let mut none = Trust::new(Anchor::Root(root().public()));
    assert!(matches!(
        none.add(foreign.certificate()),
        Err(TrustError::OtherPlatform { .. })
    ));
    let error = Checkpoint::open(&note, &none, "here").unwrap_err();
    assert!(matches!(
        error,
        CheckpointError::Note(tabbify_token::NoteError::UnknownKey { .. })
    ));
    // A key of the platform's own making, but of another kind.
    let mut forged = log_key().certificate().clone();
    forged.signature = tabbify_token::endorse_issuer(&root(), &forged.log_key);
    assert_eq!(none.add(&forged), Err(TrustError::Signature));
    // The word of the root key is for one key.
    let mut swapped = log_key().certificate().clone();
    swapped.log_key = other.public();
    assert_eq!(none.add(&swapped), Err(TrustError::Signature));
    // Another platform with a checkpoint of its own.
    let mut theirs = Trust::new(Anchor::Platform(PlatformId::of(&other.public())));
    theirs.add(foreign.certificate()).unwrap();
    assert!(matches!(
        Checkpoint::open(&note, &theirs, "here"),
        Err(CheckpointError::Origin { .. })
    ));
    // A signature by a key that nobody vouches for.
    let stranger = checkpoint(5).sign(&other, "here").unwrap();
    assert!(Checkpoint::open(&stranger.note, &trust(), "here").is_err());
}

#[test]
fn an_anchor_is_a_key_or_an_id() {
    let key = root().public();
    for anchor in [Anchor::Root(key), Anchor::Platform(PlatformId::of(&key))] {
        assert_eq!(anchor.to_string().parse(), Ok(anchor.clone()));
        let mut trust = Trust::new(anchor);
        trust.add(log_key().certificate()).unwrap();
        assert!(Checkpoint::open(&signed(5).note, &trust, "here").is_ok());
    }
    assert!("".parse::<Anchor>().is_err());
    assert!("not a key".parse::<Anchor>().is_err());
}

#[test]
fn what_is_signed_must_also_be_sound() {
    assert!(Checkpoint::open(&resigned(str::to_owned), &trust(), "here").is_ok());
    type Change = fn(&str) -> String;
    let cases: [(&str, Change); 12] = [
        ("no size", |t| {
            t.lines().take(1).fold(String::new(), |a, l| a + l + "\n")
        }),
        ("another size", |t| t.replacen("\n5\n", "\n7\n", 1)),
        ("a size of zero", |t| t.replacen("\n5\n", "\n0\n", 1)),
        ("a signed size", |t| t.replacen("\n5\n", "\n+5\n", 1)),
        ("a padded size", |t| t.replacen("\n5\n", "\n05\n", 1)),
        ("a size beyond all", |t| {
            t.replacen("\n5\n", "\n99999999999999999999\n", 1)
        }),
        ("another root", |t| t.replacen('=', "A=", 1)),
        ("an upper-case log id", |t| t.replace("abab", "ABAB")),
        ("fewer events than frames", |t| {
            t.replace("position 8", "position 4")
        }),
        ("no peaks", |t| {
            t.split("peaks").next().unwrap_or_default().to_owned()
        }),
        ("one peak too few", |t| {
            let (all, _) = t.trim_end().rsplit_once(' ').unwrap_or_default();
            format!("{all}\n")
        }),
        ("a line of a later form", |t| format!("{t}more 1\n")),
    ];
    for (what, change) in cases {
        let note = resigned(change);
        let opened = Checkpoint::open(&note, &trust(), "here");
        assert!(
            matches!(opened, Err(CheckpointError::Malformed(_))),
            "{what}: {opened:?}"
        );
    }
}

#[test]
fn a_truncated_note_is_refused() {
    let note = signed(5).note;
    for len in 0..note.len() {
        let Some(cut) = note.get(..len) else { continue };
        assert!(Checkpoint::open(cut, &trust(), "here").is_err(), "{len}");
    }
}

#[test]
fn a_key_is_made_once_and_may_be_made_again() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.key");
    let made = LogKey::load_or_create(&path, &root()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let read = LogKey::load_or_create(&path, &root()).unwrap();
    assert_eq!(read.certificate(), made.certificate());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let wide = LogKey::load_or_create(&path, &root()).unwrap_err();
    assert!(matches!(wide, LogKeyError::Io { .. }), "{wide}");
    std::fs::remove_file(&path).unwrap();
    let again = LogKey::load_or_create(&path, &root()).unwrap();
    assert_ne!(again.certificate().log_key, made.certificate().log_key);
    for bad in ["", "AAAA", "\u{0}"] {
        std::fs::write(&path, bad).unwrap();
        let refused = LogKey::load_or_create(&path, &root());
        assert!(matches!(refused, Err(LogKeyError::Key { .. })), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        prop_assert!(Checkpoint::open(&text, &trust(), "here").is_err());
        // The same as lines of a checkpoint that is signed.
        let name = origin(&checkpoint(5).platform);
        let lines: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
        if let Ok(note) = note::sign(&format!("{name}\n{lines}\n"), &name, &log_key().secret) {
            prop_assert!(Checkpoint::open(&note, &trust(), "here").is_err());
        }
        prop_assert!(Proof::read(&bytes).is_err());
    }

    #[test]
    fn one_changed_byte_is_refused(at in any::<Index>(), mask in 1_u8..=255) {
        let good = signed(5).note;
        let mut bytes = good.clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        prop_assert!(Checkpoint::open(&text, &trust(), "here").is_err());
        prop_assert_eq!(Checkpoint::open(&good, &trust(), "here").map(|s| s.note), Ok(good));
    }
}
