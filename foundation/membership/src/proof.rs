//! Proof of possession: whoever connects shows that it holds a WireGuard private key, before the first
//! request and bound to this connection (docs/adr/0016-who-asks-the-coordinator.md).
//!
//! ```text
//!   server ─ version, E ────▶ client      E = e·G, made for this connection
//!   server ◀─ P, MAC(k, t) ── client      k = derive(x·E),  t = binding ‖ E ‖ P
//!   server ─ verdict ───────▶ client      checks with k = derive(e·P)
//! ```
//!
//! The binding is the TLS exporter of the connection (RFC 9266, with a label of our own), so that a proof
//! is good for one connection to one server, and E is fresh, so that nobody can have seen it before. What
//! a client computes with its key leaves it only through a hash under a context that nothing else uses:
//! a server learns nothing that would help it in a WireGuard handshake.

use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tabbify_process::files;
use tabbify_types::MeshKey;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Says what the bytes that follow are.
const VERSION: u8 = 1;
/// The verdicts.
const WELCOME: u8 = 0;
const REFUSED: u8 = 1;
/// Context of the derived key; nothing else uses it.
const CONTEXT: &str = "tabbify 2026-11-22 coordinator proof of possession v1";
/// LIMIT: how long a proof may take.
pub const PROOF_WITHIN: Duration = Duration::from_secs(5);

/// Binds a proof to the connection that it is given on.
pub type Binding = [u8; 32];

/// A WireGuard private key, to prove that we have it. Wiped when dropped; its `Debug` is blank.
#[derive(Clone)]
pub struct MeshSecret(StaticSecret);

impl MeshSecret {
    /// The key with these 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(StaticSecret::from(*bytes))
    }

    /// The key in a file that only its owner can read, in the format of `wg genkey`.
    ///
    /// # Errors
    /// Those of the file, and [`io::ErrorKind::InvalidData`] if it holds something else.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = Zeroizing::new(files::read_secret(path)?);
        let wrong = || {
            let text = format!("{} is not a WireGuard private key", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let bytes = Zeroizing::new(STANDARD.decode(text.trim_ascii()).map_err(|_| wrong())?);
        let bytes: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| wrong())?;
        Ok(Self::from_bytes(bytes))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> MeshKey {
        MeshKey(PublicKey::from(&self.0).to_bytes())
    }

    /// The proof key that is shared with `other`; none if `other` is of low order, since then everybody
    /// would share it.
    fn agree(&self, other: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        let shared = self.0.diffie_hellman(&PublicKey::from(*other));
        let derived = shared
            .was_contributory()
            .then(|| blake3::derive_key(CONTEXT, shared.as_bytes()));
        derived.map(Zeroizing::new)
    }
}

impl std::fmt::Debug for MeshSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MeshSecret")
    }
}

fn proof(key: &[u8; 32], binding: &Binding, ephemeral: &[u8; 32], own: &[u8; 32]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(binding).update(ephemeral).update(own);
    hasher.finalize()
}

/// Asks whoever has connected for its proof; gives the key. Takes at most [`PROOF_WITHIN`].
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] if it proves none, [`io::ErrorKind::TimedOut`], and those of the
/// stream.
pub async fn demand<S>(stream: &mut S, binding: &Binding) -> io::Result<MeshKey>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let asked = async {
        let secret = MeshSecret::from_bytes(&tabbify_process::random());
        let ephemeral = secret.public().0;
        let mut question = [VERSION; 33];
        question[1..].copy_from_slice(&ephemeral);
        stream.write_all(&question).await?;
        stream.flush().await?;
        let (mut own, mut mac) = ([0; 32], [0; 32]);
        stream.read_exact(&mut own).await?;
        stream.read_exact(&mut mac).await?;
        let key = secret.agree(&own);
        // The comparison of hashes takes the same time wherever they differ.
        let holds = key.is_some_and(|key| proof(&key, binding, &ephemeral, &own) == mac);
        stream
            .write_all(&[if holds { WELCOME } else { REFUSED }])
            .await?;
        stream.flush().await?;
        match holds {
            true => Ok(MeshKey(own)),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        }
    };
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    tokio::time::timeout(PROOF_WITHIN, asked)
        .await
        .map_err(late)?
}

/// Proves that we have `secret` to whoever we have connected to.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] if the proof is not taken, and those of the stream.
pub async fn give<S>(stream: &mut S, secret: &MeshSecret, binding: &Binding) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let wrong = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let given = async {
        let mut question = [0; 33];
        stream.read_exact(&mut question).await?;
        let [version, ephemeral @ ..] = question;
        if version != VERSION {
            return Err(wrong("the coordinator asks for another proof: upgrade"));
        }
        let own = secret.public().0;
        let key = secret.agree(&ephemeral);
        let key = key.ok_or_else(|| wrong("the coordinator's question is of low order"))?;
        let mut answer = [0; 64];
        answer[..32].copy_from_slice(&own);
        answer[32..].copy_from_slice(proof(&key, binding, &ephemeral, &own).as_bytes());
        stream.write_all(&answer).await?;
        stream.flush().await?;
        match stream.read_u8().await? {
            WELCOME => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the coordinator does not take the proof of our key",
            )),
        }
    };
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    tokio::time::timeout(PROOF_WITHIN, given)
        .await
        .map_err(late)?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::io::{DuplexStream, duplex};

    use super::*;

    const BINDING: Binding = [7; 32];

    fn secret(byte: u8) -> MeshSecret {
        MeshSecret::from_bytes(&[byte; 32])
    }

    /// What the server makes of an answer that is made from its question.
    async fn answered(answer: impl FnOnce([u8; 33]) -> Vec<u8>) -> io::Result<MeshKey> {
        let (mut near, mut far) = duplex(1024);
        let client = async {
            let mut question = [0; 33];
            far.read_exact(&mut question).await?;
            far.write_all(&answer(question)).await?;
            far.shutdown().await?;
            Ok::<_, io::Error>(far)
        };
        let (demanded, client) = tokio::join!(demand(&mut near, &BINDING), client);
        client?;
        demanded
    }

    /// An honest answer on a connection with this binding.
    fn honest(secret: &MeshSecret, binding: &Binding, question: [u8; 33]) -> Vec<u8> {
        let [_, ephemeral @ ..] = question;
        let own = secret.public().0;
        let key = secret.agree(&ephemeral).unwrap();
        let mac = proof(&key, binding, &ephemeral, &own);
        [own, *mac.as_bytes()].concat()
    }

    async fn both(
        near: &mut DuplexStream,
        far: &mut DuplexStream,
        bindings: [Binding; 2],
    ) -> (io::Result<MeshKey>, io::Result<()>) {
        let secret = secret(1);
        tokio::join!(demand(near, &bindings[0]), give(far, &secret, &bindings[1]))
    }

    #[tokio::test]
    async fn a_key_is_proven_on_its_connection_and_no_other() {
        let (mut near, mut far) = duplex(1024);
        let (demanded, given) = both(&mut near, &mut far, [BINDING; 2]).await;
        assert_eq!(demanded.unwrap(), secret(1).public());
        given.unwrap();
        // Somebody in the middle has two connections, and their bindings differ.
        let (mut near, mut far) = duplex(1024);
        let (demanded, given) = both(&mut near, &mut far, [BINDING, [8; 32]]).await;
        for error in [demanded.unwrap_err(), given.unwrap_err()] {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }

    #[tokio::test]
    async fn what_proves_nothing_is_refused() {
        let right = answered(|question| honest(&secret(1), &BINDING, question)).await;
        assert_eq!(right.unwrap(), secret(1).public());
        let mut seen = Vec::new();
        answered(|question| {
            seen = honest(&secret(1), &BINDING, question);
            seen.clone()
        })
        .await
        .unwrap();
        let denied = |answer: io::Result<MeshKey>| {
            assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        };
        denied(answered(|_| seen).await);
        denied(answered(|_| vec![0; 64]).await);
        // Another's public key, with a proof of one's own.
        denied(
            answered(|question| {
                let mut answer = honest(&secret(2), &BINDING, question);
                answer[..32].copy_from_slice(&secret(1).public().0);
                answer
            })
            .await,
        );
        for bit in [0, 255, 256, 511] {
            denied(
                answered(|question| {
                    let mut answer = honest(&secret(1), &BINDING, question);
                    answer[bit / 8] ^= 1 << (bit % 8);
                    answer
                })
                .await,
            );
        }
        // Keys of low order share the same secret with everybody: all zeros.
        let zero = blake3::derive_key(CONTEXT, &[0; 32]);
        for low in [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            denied(
                answered(|question| {
                    let [_, ephemeral @ ..] = question;
                    [low, *proof(&zero, &BINDING, &ephemeral, &low).as_bytes()].concat()
                })
                .await,
            );
        }
        let short = answered(|_| vec![0; 63]).await.unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends() {
        let (mut near, _far) = duplex(1024);
        let late = demand(&mut near, &BINDING).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        let late = give(&mut near, &secret(1), &BINDING).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_question_that_would_tell_the_key_is_not_answered() {
        let mut low = [0; 33];
        low[0] = VERSION;
        for question in [low, [0; 33], [0xff; 33]] {
            let (mut near, mut far) = duplex(1024);
            near.write_all(&question).await.unwrap();
            let refused = give(&mut far, &secret(1), &BINDING).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
            drop(far);
            assert_eq!(
                near.read_u8().await.unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
        }
    }

    #[test]
    fn key_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let text = format!("{}\n", STANDARD.encode([1; 32]));
        files::create_secret(&path, text.as_bytes()).unwrap();
        assert_eq!(
            MeshSecret::read(&path).unwrap().public(),
            secret(1).public()
        );
        std::fs::write(&path, "half a k").unwrap();
        assert!(MeshSecret::read(&path).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(MeshSecret::read(&path).is_err());
        assert_eq!(format!("{:?}", secret(1)), "MeshSecret");
    }
}
