//! Every bound of a manifest and a lock file, in one place.

use std::time::Duration;

use tabbify_types::{APP_PORT, ByteSize};

/// LIMIT: bytes of a `tabbify.toml` or `tabbify.lock`.
pub const FILE_LEN_MAX: usize = 64 * 1024;
/// LIMIT: tables within tables; today's deepest key has three parts.
pub const NESTING_MAX: usize = 8;
/// LIMIT: problems listed in one run; the rest is counted.
pub const PROBLEMS_MAX: usize = 100;
/// LIMIT: bytes of `app.description`.
pub const DESCRIPTION_LEN_MAX: usize = 1024;
/// LIMIT: variables of one environment, secrets included.
pub const ENV_COUNT_MAX: usize = 256;
/// LIMIT: bytes of all names and values of one environment.
pub const ENV_LEN_MAX: usize = 32 * 1024;
/// LIMIT: bytes of the name of a variable.
pub const ENV_NAME_LEN_MAX: usize = 128;
/// LIMIT: words of one command.
pub const COMMAND_WORDS_MAX: usize = 64;
/// LIMIT: bytes of all words of one command.
pub const COMMAND_LEN_MAX: usize = 4 * 1024;
/// LIMIT: bytes of a path, in the project or in a container.
pub const PATH_LEN_MAX: usize = 512;
/// LIMIT: bytes of an image reference.
pub const IMAGE_LEN_MAX: usize = 512;
/// LIMIT: entries of `network.egress`.
pub const EGRESS_COUNT_MAX: usize = 128;
/// LIMIT: entries of `events.subscribe` and of `events.emit`.
pub const SEGMENTS_COUNT_MAX: usize = 64;
/// LIMIT: `[[schedule]]` blocks.
pub const SCHEDULES_MAX: usize = 32;
/// LIMIT: `[[port]]` blocks.
pub const PORTS_MAX: usize = 32;
/// Ports of an app's address at which its runner answers itself: no `[[port]]` has their number.
pub const PLATFORM_PORTS: [u16; 2] = [APP_PORT, APP_PORT + 1];
/// LIMIT: `[[deploy]]` blocks.
pub const DEPLOYS_MAX: usize = 64;
/// LIMIT: copies of an app on one target.
pub const REPLICAS_MAX: u16 = 100;
/// LIMIT: least memory of an app; a component with an allocator does not start below it.
pub const MEMORY_MIN: ByteSize = ByteSize::mib(1);
/// LIMIT: most memory of an app.
pub const MEMORY_MAX: ByteSize = ByteSize::mib(1 << 20);
/// LIMIT: least size of a volume.
pub const VOLUME_MIN: ByteSize = ByteSize::mib(1);
/// LIMIT: most size of a volume.
pub const VOLUME_MAX: ByteSize = ByteSize::mib(64 << 20);
/// LIMIT: processors of an app, in thousandths.
pub const CPUS_MILLI_MAX: u32 = 256_000;
/// LIMIT: how long an instance may take to become healthy.
pub const HEALTHY_WITHIN_MAX: Duration = Duration::from_secs(3600);
/// LIMIT: how long an instance may take to stop.
pub const STOP_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// LIMIT: how long an app without requests may be kept running.
pub const IDLE_TIMEOUT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// LIMIT: servers in one lock file.
pub const LOCK_SERVERS_MAX: usize = 256;
/// LIMIT: bytes of the name of a server in a lock file.
pub const LOCK_SERVER_LEN_MAX: usize = 256;
