//! What a supervisor makes of other ends: strangers, liars, the silent and the talkative. The
//! honest end is the real runner, in `tests/it`.

use proptest::collection::vec;
use proptest::prelude::{any, proptest};
use tabbify_types::InstanceId;
use tabbify_types::event::v1::InstanceRef;
use tokio::net::UnixListener;

use super::*;
use crate::state::tests::of;

struct Stage {
    dir: RunnerDir,
    listener: UnixListener,
    secret: Secret,
    _home: tempfile::TempDir,
}

fn stage() -> Stage {
    let home = tempfile::tempdir().expect("a temporary directory");
    let dir = RunnerDir::new(home.path(), of(1, 1));
    std::fs::create_dir_all(dir.path()).expect("an empty directory takes another");
    Stage {
        listener: unix::bind(dir.path(), CONTROL_SOCKET).expect("a free name"),
        secret: Secret::mint(),
        dir,
        _home: home,
    }
}

impl Stage {
    /// Opens a connection while the other end reads one line and says `answer`.
    async fn open_against(&self, answer: &[u8]) -> Result<Connection, Error> {
        let other = async {
            let (stream, _) = self.listener.accept().await.expect("a caller");
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            stream.read_until(b'\n', &mut line).await.expect("a line");
            // Who stops listening in the middle of a long answer is right.
            let _ = stream.get_mut().write_all(answer).await;
        };
        tokio::join!(Connection::prove(&self.dir, &self.secret), other).0
    }

    async fn refuses(&self, answer: &[u8], why: &str) {
        let error = self.open_against(answer).await.unwrap_err();
        let text = tabbify_process::chain(&error).to_string();
        assert!(text.contains(why), "{text}");
    }
}

#[tokio::test]
async fn strangers_are_refused() {
    let stage = stage();
    let zeros = "0".repeat(64);
    let lie = format!("{{\"answer\":\"hello\",\"proof\":\"{zeros}\"}}\n");
    let stranger = "does not know the secret";
    stage.refuses(lie.as_bytes(), stranger).await;
    stage
        .refuses(b"{\"answer\":\"hello\",\"proof\":\"short\"}\n", stranger)
        .await;
    let else_ = "something else to hello";
    stage.refuses(b"{\"answer\":\"done\"}\n", else_).await;
    stage.refuses(b"not json\n", "expected").await;
    stage.refuses(b"", "ends in the middle").await;
    stage.refuses(b"{\"answer\":", "ends in the middle").await;
    let endless = vec![b'x'; LINE_LEN_MAX + 10];
    stage.refuses(&endless, "too long").await;
}

#[tokio::test(start_paused = true)]
async fn the_silent_are_given_up() {
    let stage = stage();
    let opening = Connection::prove(&stage.dir, &stage.secret);
    let error = opening.await.unwrap_err();
    assert!(
        error.to_string().contains("no answer within 10 s"),
        "{error}"
    );
}

#[tokio::test]
async fn an_honest_end_that_is_another_instance_is_noticed() {
    let stage = stage();
    let honest = async {
        let (stream, _) = stage.listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let Request::Hello { nonce, proof } = serde_json::from_str(&line).unwrap() else {
            panic!("{line}");
        };
        let nonce = URL_SAFE_NO_PAD.decode(nonce).unwrap();
        let nonce: [u8; 32] = nonce.try_into().unwrap();
        let expected = stage.secret.proof(CALLER_PROOF, &nonce);
        assert_eq!(proof, expected.to_hex().to_string());
        let proof = stage.secret.proof(RUNNER_PROOF, &nonce).to_hex();
        let other = InstanceRef {
            instance: InstanceId(2),
            ..stage.dir.of()
        };
        let status = Status {
            state: StateName::Ready,
            failure: None,
            of: other,
            pid: 1,
            key: tabbify_types::MeshKey([1; 32]),
            underlay: ([127, 0, 0, 1], 1).into(),
            active: 0,
            total: 0,
            secrets: std::collections::BTreeMap::new(),
        };
        let proof = proof.to_string();
        for answer in [Answer::Hello { proof }, Answer::Status(status)] {
            let mut answer = serde_json::to_vec(&answer).unwrap();
            answer.push(b'\n');
            stream.get_mut().write_all(&answer).await.unwrap();
            // The next request, and in the end the end.
            line.clear();
            stream.read_line(&mut line).await.unwrap();
        }
        assert_eq!(line, "");
    };
    let calling = async {
        let mut connection = Connection::prove(&stage.dir, &stage.secret).await.unwrap();
        connection.status().await.unwrap_err().to_string()
    };
    let (error, ()) = tokio::join!(calling, honest);
    assert!(error.contains("another instance"), "{error}");
}

#[test]
fn a_secret_never_shows_and_survives_its_text() {
    let secret = Secret::mint();
    assert_eq!(format!("{secret:?}"), "Secret");
    assert_eq!(secret.to_text().len(), 43);
}

proptest! {
    #[test]
    fn no_answer_is_believed_without_proof(answer in vec(any::<u8>(), 0..2_000)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { stage().open_against(&answer).await.unwrap_err() });
    }
}
