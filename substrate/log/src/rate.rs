//! How fast a tenant may append: a bucket of events and one of bytes for each, in front of any engine,
//! so that one app's loop cannot fill the platform's disk.
//!
//! ```text
//!   burst ┤▒▒▒▒▒▒▒▒  what the tenant's own writers may take
//! reserve ┤████████  left to the platform's roles: what they decide about a tenant is
//!       0 ┘          recorded even while its apps append as fast as they may
//! ```
//!
//! Charged is the tenant whose segment is written, whoever writes. A role of the platform is who may
//! write to several tenants. Segments of the platform are not limited: no tenant's token writes there
//! but to claim an address, and hosts' reports are few.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::log::{
    Append, AppendError, Appended, BATCH_EVENTS_MAX, BATCH_LEN_MAX, EventLog, Filter, LogEngine,
    LogScope, Page, ReadError, Subscribe,
};
use tabbify_types::{NewEvent, Position, Segment, SegmentGlob, Tenant};
use tokio::time::Instant;

/// LIMIT: events that a tenant may append per second, lasting.
const EVENTS_PER_SECOND: u32 = 1_000;
/// LIMIT: bytes that a tenant may append per second, lasting: 22 GB a day.
const BYTES_PER_SECOND: u32 = 256 * 1024;
/// LIMIT: events that a tenant may append at once after a pause.
const EVENTS_BURST: u32 = 20_000;
/// LIMIT: bytes that a tenant may append at once after a pause.
const BYTES_BURST: u32 = 32 * 1024 * 1024;
/// LIMIT: tenants whose buckets are remembered. A full bucket is like none and is forgotten first.
const TENANTS_MAX: usize = 10_000;

/// The part of a burst that only roles of the platform may take: one in so many.
const RESERVE: f64 = 4.0;

/// How fast each tenant may append. A batch of the greatest size always fits into a full bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Events per second, lasting.
    pub events_per_second: u32,
    /// Events at once after a pause; at least twice [`BATCH_EVENTS_MAX`].
    pub events_burst: u32,
    /// Bytes per second, lasting.
    pub bytes_per_second: u32,
    /// Bytes at once after a pause; at least twice [`BATCH_LEN_MAX`].
    pub bytes_burst: u32,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            events_per_second: EVENTS_PER_SECOND,
            events_burst: EVENTS_BURST,
            bytes_per_second: BYTES_PER_SECOND,
            bytes_burst: BYTES_BURST,
        }
    }
}

/// An engine that takes from each tenant no more than its rate.
#[derive(Debug, Clone)]
pub struct RateLimited {
    engine: Arc<dyn LogEngine>,
    meters: Arc<Meters>,
}

impl RateLimited {
    /// `engine`, limited. What is below a possible limit counts as that limit: one event and one
    /// byte per second, and bursts as [`Rates`] says.
    #[must_use]
    pub fn new(engine: Arc<dyn LogEngine>, rates: Rates) -> Self {
        let least = |limit: usize| u32::try_from(2 * limit).unwrap_or(u32::MAX);
        let rates = Rates {
            events_per_second: rates.events_per_second.max(1),
            events_burst: rates.events_burst.max(least(BATCH_EVENTS_MAX)),
            bytes_per_second: rates.bytes_per_second.max(1),
            bytes_burst: rates.bytes_burst.max(least(BATCH_LEN_MAX)),
        };
        let meters = Meters {
            rates,
            tenants: Mutex::default(),
        };
        Self {
            engine,
            meters: Arc::new(meters),
        }
    }
}

impl LogEngine for RateLimited {
    fn client(&self, scope: LogScope) -> Arc<dyn EventLog> {
        let inner = self.engine.client(scope.clone());
        Arc::new(Client {
            inner,
            meters: Arc::clone(&self.meters),
            of_platform: scope.write.iter().any(spans_tenants),
            write: scope.write,
        })
    }

    fn head(&self) -> Position {
        self.engine.head()
    }

    fn verify(
        &self,
        after: Position,
        upto: Position,
    ) -> BoxFuture<'_, Result<Position, ReadError>> {
        self.engine.verify(after, upto)
    }
}

/// Whether it selects segments of more than one tenant.
fn spans_tenants(glob: &SegmentGlob) -> bool {
    let first = glob.as_str().split('.').next().unwrap_or_default();
    first.contains('*')
}

struct Client {
    inner: Arc<dyn EventLog>,
    meters: Arc<Meters>,
    of_platform: bool,
    write: Vec<SegmentGlob>,
}

impl Client {
    /// Takes the batch's cost from its tenants' buckets, or from none.
    fn charge(&self, batch: &Append) -> Result<(), AppendError> {
        // What the scope does not allow is refused behind us, and must cost its owner nothing.
        let may = |segment: &Segment| self.write.iter().any(|glob| glob.matches(segment));
        if !batch.events.iter().all(|event| may(&event.segment)) {
            return Ok(());
        }
        let costs = costs(&batch.events);
        if costs.is_empty() {
            return Ok(());
        }
        self.meters.charge(&costs, self.of_platform, Instant::now())
    }
}

impl EventLog for Client {
    fn append(&self, batch: Append) -> BoxFuture<'_, Result<Appended, AppendError>> {
        match self.charge(&batch) {
            Ok(()) => self.inner.append(batch),
            Err(refusal) => Box::pin(std::future::ready(Err(refusal))),
        }
    }

    fn read(
        &self,
        filter: Filter,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page, ReadError>> {
        self.inner.read(filter, after, limit)
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Result<Box<dyn Subscribe>, ReadError> {
        self.inner.subscribe(filter, after)
    }

    fn head(&self) -> Position {
        self.inner.head()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimited")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// What a batch takes from one tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Cost {
    events: f64,
    bytes: f64,
}

/// The cost to each tenant. A batch beyond the limits of a batch, which is refused behind us, costs
/// no more than they do, so that it is refused for what is wrong with it.
fn costs(events: &[NewEvent]) -> Vec<(Tenant, Cost)> {
    let mut costs: Vec<(Tenant, Cost)> = Vec::new();
    for event in events {
        let Some(tenant) = event.segment.tenant() else {
            continue;
        };
        let at = costs.iter().position(|(known, _)| *known == tenant);
        let at = at.unwrap_or_else(|| {
            costs.push((tenant, Cost::default()));
            costs.len() - 1
        });
        let cost = &mut costs[at].1;
        let len = event.key.len() + event.kind.len() + event.data.get().len();
        cost.events = as_f64(BATCH_EVENTS_MAX).min(cost.events + 1.0);
        cost.bytes = as_f64(BATCH_LEN_MAX).min(cost.bytes + as_f64(len));
    }
    costs
}

fn as_f64(len: usize) -> f64 {
    f64::from(u32::try_from(len).unwrap_or(u32::MAX))
}

#[derive(Debug)]
struct Meters {
    rates: Rates,
    tenants: Mutex<HashMap<Tenant, Buckets>>,
}

impl Meters {
    /// Takes all costs, or none and says when it could.
    fn charge(
        &self,
        costs: &[(Tenant, Cost)],
        of_platform: bool,
        now: Instant,
    ) -> Result<(), AppendError> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() + costs.len() > TENANTS_MAX {
            tenants.retain(|_, buckets| !buckets.at(now, &self.rates).is_full(&self.rates));
        }
        let mut charged = Vec::with_capacity(costs.len());
        for (tenant, cost) in costs {
            let full = || Buckets::full(now, &self.rates);
            let buckets = tenants.get(tenant).copied().unwrap_or_else(full);
            let buckets = buckets.at(now, &self.rates);
            let taken = buckets.take(*cost, of_platform, &self.rates);
            charged.push(taken.map_err(|wait| AppendError::Rate {
                tenant: tenant.clone(),
                retry_after_ms: millis_up(wait),
            })?);
        }
        for ((tenant, _), buckets) in costs.iter().zip(charged) {
            match tenants.get_mut(tenant) {
                Some(known) => *known = buckets,
                None => drop(tenants.insert(tenant.clone(), buckets)),
            }
        }
        Ok(())
    }
}

fn millis_up(wait: Duration) -> u64 {
    u64::try_from(wait.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}

/// What a tenant may still append, as of a moment.
#[derive(Debug, Clone, Copy)]
struct Buckets {
    events: f64,
    bytes: f64,
    as_of: Instant,
}

impl Buckets {
    fn full(now: Instant, rates: &Rates) -> Self {
        Self {
            events: f64::from(rates.events_burst),
            bytes: f64::from(rates.bytes_burst),
            as_of: now,
        }
    }

    fn is_full(&self, rates: &Rates) -> bool {
        self.events >= f64::from(rates.events_burst) && self.bytes >= f64::from(rates.bytes_burst)
    }

    /// The same, with what has flowed in since.
    fn at(self, now: Instant, rates: &Rates) -> Self {
        let since = now.saturating_duration_since(self.as_of).as_secs_f64();
        let level = |level: f64, per_second: u32, burst: u32| {
            f64::from(burst).min(level + since * f64::from(per_second))
        };
        Self {
            events: level(self.events, rates.events_per_second, rates.events_burst),
            bytes: level(self.bytes, rates.bytes_per_second, rates.bytes_burst),
            as_of: now.max(self.as_of),
        }
    }

    /// What is left when `cost` is taken, or how long to wait until it can be.
    fn take(self, cost: Cost, of_platform: bool, rates: &Rates) -> Result<Self, Duration> {
        let floor = |burst: u32| match of_platform {
            true => 0.0,
            false => f64::from(burst) / RESERVE,
        };
        let left = Self {
            events: self.events - cost.events,
            bytes: self.bytes - cost.bytes,
            as_of: self.as_of,
        };
        let lacking = |left: f64, burst: u32, per_second: u32| {
            (floor(burst) - left).max(0.0) / f64::from(per_second)
        };
        let wait = lacking(left.events, rates.events_burst, rates.events_per_second).max(lacking(
            left.bytes,
            rates.bytes_burst,
            rates.bytes_per_second,
        ));
        if wait > 0.0 {
            return Err(Duration::from_secs_f64(wait));
        }
        Ok(left)
    }
}

#[cfg(test)]
mod tests;
