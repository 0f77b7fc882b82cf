//! How long what members are told, and what they tell, counts.

use std::time::Duration;

/// How long a lease lasts; its holder renews at half of it.
pub const LEASE_LIFE: Duration = Duration::from_secs(10 * 60);

/// How long a report counts. Reporters repeat themselves three times within it.
pub const REPORT_LIFE: Duration = Duration::from_secs(90);
