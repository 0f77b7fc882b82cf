//! Compiled components, kept on this machine, so that an app starts without being compiled again: by the digest of
//! what was compiled, and by all that the result depends on: the engine, how it is set, and this processor.
//!
//! What is kept is machine code, and is run as it stands. So nothing is taken that this machine has not made: each
//! file begins with a code over its name and content, by a key that never leaves the machine. Whatever is wrong with
//! a file, the component is compiled again and the file made anew.

use std::fs::{self, OpenOptions};
use std::hash::{Hash as _, Hasher};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tabbify_process::files;
use wasmtime::Engine;
use wasmtime::component::Component;
use zeroize::Zeroizing;

/// The key's file in the directory.
const KEY_FILE: &str = "key";
/// What compiled components' names end in.
const ENDING: &str = "cwasm";
/// LIMIT: bytes of one of them: some ten times a large component.
const FILE_LEN_MAX: u64 = 1 << 30;
/// LIMIT: bytes of all of them; the oldest go first.
const CACHE_LEN_MAX: u64 = 4 << 30;
/// LIMIT: how many there are.
const FILES_MAX: usize = 4096;
const MAC_LEN: usize = blake3::OUT_LEN;

/// The directory of a machine's compiled components.
pub(super) struct Cache {
    directory: PathBuf,
    key: Zeroizing<[u8; 32]>,
}

/// Where a component came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Kept,
    Compiled,
}

impl Cache {
    /// Opens the directory, and makes it and its key if they are not there.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let path = directory.join(KEY_FILE);
        if !path.exists() {
            make_key(directory, &path)?;
        }
        let mut key = Zeroizing::new([0; 32]);
        let mut file = fs::File::open(&path)?;
        let about = file.metadata()?;
        // Whoever can write it can make us run anything.
        let is_ours = about.uid() == rustix::process::geteuid().as_raw();
        if !is_ours || about.mode() & 0o077 != 0 || about.len() != key.len() as u64 {
            let what = format!("{} is not a key of ours alone", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        }
        file.read_exact(&mut *key)?;
        let directory = directory.to_owned();
        Ok(Self { directory, key })
    }

    /// The component that `entry` is, compiled for `engine`.
    ///
    /// # Errors
    /// If it is none. That nothing can be kept is no error.
    pub(super) fn component(
        &self,
        engine: &Engine,
        entry: &[u8],
    ) -> wasmtime::Result<(Component, Origin)> {
        let name = name(engine, entry);
        let path = self.directory.join(format!("{name}.{ENDING}"));
        match self.kept(engine, name, &path) {
            Ok(component) => return Ok((component, Origin::Kept)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a compiled component is made anew");
            }
        }
        let component = Component::new(engine, entry)?;
        if let Err(error) = self.keep(&component, name, &path) {
            tracing::warn!(path = %path.display(), %error, "a compiled component is not kept");
        }
        Ok((component, Origin::Compiled))
    }

    fn kept(&self, engine: &Engine, name: blake3::Hash, path: &Path) -> io::Result<Component> {
        let mut bytes = Vec::new();
        let file = fs::File::open(path)?;
        file.take(FILE_LEN_MAX).read_to_end(&mut bytes)?;
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
        let (mac, code) = bytes
            .split_first_chunk::<MAC_LEN>()
            .ok_or_else(|| wrong("it is cut off"))?;
        // Compared in constant time.
        if self.mac(name, code) != blake3::Hash::from_bytes(*mac) {
            return Err(wrong("it is not what this machine has made"));
        }
        #[expect(
            unsafe_code,
            reason = "machine code is trusted by whoever runs it; this is the one place that decides"
        )]
        // SAFETY: these very bytes, in our memory, were made by `Component::serialize` on this machine: nobody
        // else has the key of the code that was compared above.
        let component = unsafe { Component::deserialize(engine, code) };
        component.map_err(|error| wrong(&format!("{error:#}")))
    }

    fn keep(&self, component: &Component, name: blake3::Hash, path: &Path) -> io::Result<()> {
        let code = component
            .serialize()
            .map_err(|error| io::Error::other(format!("{error:#}")))?;
        let mut bytes = Vec::with_capacity(MAC_LEN + code.len());
        bytes.extend_from_slice(self.mac(name, &code).as_bytes());
        bytes.extend_from_slice(&code);
        self.make_room(bytes.len() as u64)?;
        files::write_atomic(path, &bytes, 0o600)
    }

    fn mac(&self, name: blake3::Hash, code: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(name.as_bytes());
        hasher.update(code);
        hasher.finalize()
    }

    /// Removes the oldest until there is room for `len` more bytes. Others may do the same at the same time.
    fn make_room(&self, len: u64) -> io::Result<()> {
        let mut all: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let (path, about) = match entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))
            {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if path.extension().is_some_and(|ending| ending == ENDING) {
                all.push((about.modified()?, about.len(), path));
            }
        }
        all.sort_unstable();
        let mut held: u64 = all.iter().map(|(_, len, _)| len).sum();
        let mut count = all.len();
        for (_, its, path) in all {
            if held + len <= CACHE_LEN_MAX && count < FILES_MAX {
                break;
            }
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => (held, count) = (held - its, count - 1),
            }
        }
        Ok(())
    }
}

/// Makes the key, whole or not at all: of several that do so at the same time, one counts.
fn make_key(directory: &Path, path: &Path) -> io::Result<()> {
    let own = directory.join(format!("{KEY_FILE}.{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&own)?;
    let key = Zeroizing::new(tabbify_process::random::<32>());
    file.write_all(&*key)?;
    file.sync_all()?;
    let linked = fs::hard_link(&own, path);
    fs::remove_file(&own)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Of what was compiled, and of all that the result depends on.
fn name(engine: &Engine, entry: &[u8]) -> blake3::Hash {
    let mut depends = Fed(blake3::Hasher::new_derive_key(
        "tabbify 2026-11 compiled components",
    ));
    // Its version, its settings, and the processor's features that it uses.
    engine.precompile_compatibility_hash().hash(&mut depends);
    depends.0.update(env!("CARGO_PKG_VERSION").as_bytes());
    depends.0.update(blake3::hash(entry).as_bytes());
    depends.0.finalize()
}

/// Passes on what is to be hashed.
struct Fed(blake3::Hasher);

impl Hasher for Fed {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let hash = self.0.finalize();
        let (first, _) = hash.as_bytes().split_at(8);
        first
            .iter()
            .fold(0, |all, byte| all << 8 | u64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use wasmtime::Config;

    use super::*;

    /// A component that has nothing in it.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    fn origin(cache: &Cache, engine: &Engine) -> Origin {
        cache.component(engine, EMPTY).unwrap().1
    }

    fn kept(dir: &Path) -> Vec<PathBuf> {
        let all = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|ending| ending == ENDING))
            .collect()
    }

    #[test]
    fn compiled_once() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, engine) = (Cache::open(dir.path()).unwrap(), Engine::default());
        assert_eq!(origin(&cache, &engine), Origin::Compiled);
        assert_eq!(origin(&cache, &engine), Origin::Kept);
        // By another process, which has the same key.
        let again = Cache::open(dir.path()).unwrap();
        assert_eq!(origin(&again, &Engine::default()), Origin::Kept);
        // For another engine it is another file.
        let mut config = Config::new();
        config.epoch_interruption(true);
        assert_eq!(
            origin(&cache, &Engine::new(&config).unwrap()),
            Origin::Compiled
        );
        assert_eq!(kept(dir.path()).len(), 2);
        assert!(cache.component(&engine, b"\0asm\x0d\0\x01\0\xff").is_err());
    }

    /// Whatever was done to a file, it is not run, and is made anew.
    #[test]
    fn what_was_tampered_with_is_compiled_again() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, engine) = (Cache::open(dir.path()).unwrap(), Engine::default());
        origin(&cache, &engine);
        let path = kept(dir.path()).remove(0);
        let whole = fs::read(&path).unwrap();
        let step = whole.len() / 50;
        for at in (0..whole.len()).step_by(step) {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert_eq!(origin(&cache, &engine), Origin::Compiled, "byte {at}");
            assert_eq!(origin(&cache, &engine), Origin::Kept, "byte {at}");
        }
        for len in [0, 1, MAC_LEN, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(origin(&cache, &engine), Origin::Compiled, "{len} bytes");
        }
        // What another machine has made, whole as it is.
        let other = tempfile::tempdir().unwrap();
        origin(&Cache::open(other.path()).unwrap(), &engine);
        fs::copy(&kept(other.path())[0], &path).unwrap();
        assert_eq!(origin(&cache, &engine), Origin::Compiled);
        // What was made for another component, under this one's name.
        let name = blake3::hash(b"other");
        let code = cache
            .component(&engine, EMPTY)
            .unwrap()
            .0
            .serialize()
            .unwrap();
        let mut bytes = cache.mac(name, &code).as_bytes().to_vec();
        bytes.extend(code);
        fs::write(&path, bytes).unwrap();
        assert_eq!(origin(&cache, &engine), Origin::Compiled);
    }

    #[test]
    fn a_key_that_others_have_is_none() {
        let dir = tempfile::tempdir().unwrap();
        Cache::open(dir.path()).unwrap();
        let path = dir.path().join(KEY_FILE);
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(Cache::open(dir.path()).is_err(), "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Cache::open(dir.path()).unwrap();
        fs::write(&path, "short").unwrap();
        assert!(Cache::open(dir.path()).is_err());
    }
}
