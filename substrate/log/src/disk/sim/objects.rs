//! An object store on the simulated disk: what is put there is durable at once, is recorded as every
//! other change is, and is kept by every loss of power.

use std::collections::btree_map::Entry;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::SimDisk;
use crate::cold::objects::{Object, Objects, ObjectsError, Put};

/// Implements [`Objects`].
#[derive(Debug, Clone)]
pub(crate) struct SimObjects(pub(crate) SimDisk);

fn unreachable(error: &io::Error) -> ObjectsError {
    ObjectsError::Unreachable(error.to_string())
}

impl SimObjects {
    fn reached(&self) -> Result<(), ObjectsError> {
        match self.0.inner().faults.objects_away {
            true => Err(ObjectsError::Unreachable("the store is away".to_owned())),
            false => Ok(()),
        }
    }
}

impl Objects for SimObjects {
    fn put(&self, name: &str, object: Object, _: &AtomicBool) -> Result<(), ObjectsError> {
        self.reached()?;
        let Object { parts, put } = object;
        let written = self.0.change(|inner| {
            let objects = Arc::make_mut(&mut inner.state.objects);
            match objects.entry(name.to_owned()) {
                Entry::Occupied(_) if put == Put::Create => {}
                Entry::Occupied(mut there) => drop(there.insert(Arc::new(parts.concat()))),
                Entry::Vacant(free) => drop(free.insert(Arc::new(parts.concat()))),
            }
            Ok(())
        });
        written.map_err(|error| unreachable(&error))
    }

    fn get(&self, name: &str, range: Range<u64>, _: &AtomicBool) -> Result<Bytes, ObjectsError> {
        self.reached()?;
        let inner = self.0.inner();
        let object = inner.state.objects.get(name).ok_or(ObjectsError::Missing)?;
        let at = |n: u64| usize::try_from(n).map_or(object.len(), |n| n.min(object.len()));
        Ok(Bytes::copy_from_slice(
            &object[at(range.start)..at(range.end)],
        ))
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, ObjectsError> {
        self.reached()?;
        let inner = self.0.inner();
        let named = inner.state.objects.iter();
        let named = named.filter(|(name, _)| name.starts_with(prefix));
        Ok(named
            .map(|(name, object)| (name.clone(), object.len() as u64))
            .collect())
    }

    fn shown(&self) -> &'static str {
        "a store of a proof"
    }
}
