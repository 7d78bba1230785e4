//! How many files a process may have open: connections of clients are files, and so is all that its node needs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// So many are left to the node: its connections, its directories, its admin API.
const RESERVE: u64 = 256;

/// Raises the limit as far as this process may. What most systems begin with (1024) is for programs that know no better.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// How many of them clients may have.
pub(crate) fn for_clients() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(left_by(limit)).unwrap_or(usize::MAX)
}

fn left_by(limit: u64) -> u64 {
    limit - RESERVE.min(limit / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_files_to_the_node() {
        assert_eq!([1, 2, 100, 512, 1024, 1 << 20].map(left_by), [1, 1, 50, 256, 768, (1 << 20) - RESERVE]);
        raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert!(for_clients() > 0);
    }
}
