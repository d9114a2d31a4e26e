//! How many files this process may have open: as many as the system lets it.

use licensing::config::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What there is beside connections: listeners, stores, logs.
const OTHERS: u64 = 128;

/// Raise the limit to the highest that is allowed, and say so if it is lower than `limits` need: a file for each connection, and
/// one to the upstream for each request. Shells and container
/// runtimes often set 1024, since programs that use `select` can't have more; this one can.
pub(crate) fn allow_for(limits: &Limits) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err() {
        tracing::warn!(current, maximum, "the limit of open files can't be raised");
    }
    let needed = u64::from(limits.connections) + u64::from(limits.requests_in_flight) + OTHERS;
    if let Some(open_files) = getrlimit(Resource::Nofile).current.filter(|limit| *limit < needed) {
        tracing::warn!(
            open_files,
            needed,
            "`limits` allow for more than the system's limit of open files leaves room for"
        );
    }
}
