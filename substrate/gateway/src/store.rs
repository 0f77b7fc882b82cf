//! Sealed values on disk, two files each: the wrapped key and the sealed value. They are called by the id
//! of the event that names them, so that every attempt has files of its own and none is ever replaced.
//!
//! ```text
//!   <vault>/keys/<event id>      what is destroyed first: without it, the other says nothing
//!   <vault>/values/<event id>
//! ```

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use tabbify_process::files;
use tabbify_types::EventId;

use crate::seal::{KEY_RECORD_LEN, Sealed, VALUE_RECORD_LEN_MAX};

/// The files, which only their owner can read.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    keys: PathBuf,
    values: PathBuf,
}

/// A file or directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the vault's disk fails at {path}")]
pub(crate) struct StoreError {
    pub(crate) path: PathBuf,
    #[source]
    pub(crate) source: io::Error,
}

impl Store {
    /// The store in `dir`, which is made (0700) where there is none.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let store = Self {
            keys: dir.join("keys"),
            values: dir.join("values"),
        };
        for dir in [&store.keys, &store.values] {
            files::private_dir(dir).map_err(at(dir))?;
        }
        files::sync_dir(dir).map_err(at(dir))?;
        Ok(store)
    }

    /// Writes a new record; it is on disk when this returns.
    pub(crate) fn put(&self, id: EventId, sealed: &Sealed) -> Result<(), StoreError> {
        let (key, value) = self.paths(id);
        files::create_secret(&value, &sealed.value).map_err(at(&value))?;
        files::create_secret(&key, &sealed.key).map_err(at(&key))
    }

    /// A record; `None` if there is none, or none any more.
    pub(crate) fn get(&self, id: EventId) -> Result<Option<Sealed>, StoreError> {
        let (key, value) = self.paths(id);
        let key = read(&key, KEY_RECORD_LEN).map_err(at(&key))?;
        let value = read(&value, VALUE_RECORD_LEN_MAX).map_err(at(&value))?;
        Ok(key.zip(value).map(|(key, value)| Sealed { key, value }))
    }

    /// Destroys a record, its key first. Done again, it does nothing.
    ///
    /// The bytes are overwritten before the files go: that they are gone from the medium itself, no program
    /// can promise above a file system that copies what is written; without the master key, none of it says
    /// anything.
    pub(crate) fn shred(&self, id: EventId) -> Result<(), StoreError> {
        let (key, value) = self.paths(id);
        for (path, dir) in [(&key, &self.keys), (&value, &self.values)] {
            match overwrite(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(at(path)(error)),
            }
            fs::remove_file(path).map_err(at(path))?;
            files::sync_dir(dir).map_err(at(dir))?;
        }
        Ok(())
    }

    /// Every record, whole or not.
    pub(crate) fn ids(&self) -> Result<BTreeSet<EventId>, StoreError> {
        let mut ids = BTreeSet::new();
        for dir in [&self.keys, &self.values] {
            for entry in fs::read_dir(dir).map_err(at(dir))? {
                let name = entry.map_err(at(dir))?.file_name();
                // What is not called so is not ours to remove.
                ids.extend(name.to_str().and_then(|name| name.parse::<EventId>().ok()));
            }
        }
        Ok(ids)
    }

    fn paths(&self, id: EventId) -> (PathBuf, PathBuf) {
        let name = id.to_string();
        (self.keys.join(&name), self.values.join(name))
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError {
        path: path.to_owned(),
        source,
    }
}

/// A file of at most `len_max` bytes; a longer one is no record, and is cut where that shows.
fn read(path: &Path, len_max: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(len_max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn overwrite(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let len = file.metadata()?.len();
    io::copy(&mut io::repeat(0).take(len), &mut file)?;
    file.flush()?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn sealed(byte: u8) -> Sealed {
        Sealed {
            key: vec![byte; KEY_RECORD_LEN],
            value: vec![byte; 10],
        }
    }

    #[test]
    fn a_record_is_there_until_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (one, two) = (EventId::mint(), EventId::mint());
        store.put(one, &sealed(1)).unwrap();
        store.put(two, &sealed(2)).unwrap();
        assert_eq!(store.get(one).unwrap(), Some(sealed(1)));
        assert!(store.put(one, &sealed(3)).is_err(), "none is replaced");
        assert_eq!(store.ids().unwrap(), BTreeSet::from([one, two]));
        for dir in [&store.keys, &store.values] {
            let file = fs::metadata(dir.join(one.to_string())).unwrap();
            assert_eq!(file.mode() & 0o777, 0o600);
            assert_eq!(fs::metadata(dir).unwrap().mode() & 0o777, 0o700);
        }
        store.shred(one).unwrap();
        store.shred(one).unwrap();
        assert_eq!(store.get(one).unwrap(), None);
        let again = Store::open(dir.path()).unwrap();
        assert_eq!(again.get(two).unwrap(), Some(sealed(2)));
    }

    #[test]
    fn half_a_record_is_none_and_can_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let id = EventId::mint();
        fs::write(store.values.join(id.to_string()), "half").unwrap();
        fs::write(store.values.join("notes.txt"), "somebody's").unwrap();
        assert_eq!(store.get(id).unwrap(), None);
        assert_eq!(store.ids().unwrap(), BTreeSet::from([id]));
        store.shred(id).unwrap();
        assert!(store.ids().unwrap().is_empty());
        assert!(store.values.join("notes.txt").exists());
    }
}
