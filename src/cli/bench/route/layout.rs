//! On which cores routers run, and on which everything else.

use std::io;

use clap::ValueEnum;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::cli::Failure;

/// Who gets which cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Layout {
    /// Routers have the first cores to themselves, one for each worker; everything else has the others.
    Pinned,
    /// The kernel decides.
    Free,
    /// Everything is on the first core.
    One,
}

/// A layout, on the cores of this machine.
#[derive(Clone, Copy)]
pub(super) struct Places {
    pub(super) layout: Layout,
    routers: CpuSet,
    others: CpuSet,
}

impl Places {
    /// This layout; without one pinned where there are cores enough, else free.
    pub(super) fn new(layout: Option<Layout>, workers: usize) -> Result<Self, Failure> {
        let allowed = sched_getaffinity(None)?;
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
        let enough = cores.len() > workers;
        let layout = layout.unwrap_or(if enough { Layout::Pinned } else { Layout::Free });
        let (routers, others) = match layout {
            Layout::Pinned if enough => cores.split_at(workers),
            Layout::Pinned => {
                let needed = workers + 1;
                return Err(Failure::usage(format!(
                    "--layout pinned: a router with --workers {workers} and what is around it need {needed} cores, and there are {}",
                    cores.len()
                )));
            }
            Layout::Free => (&cores[..], &cores[..]),
            Layout::One => (&cores[..1], &cores[..1]),
        };
        Ok(Self { layout, routers: set(routers), others: set(others) })
    }

    /// Takes this thread, and those that it starts from now on, to where everything but routers is.
    pub(super) fn take(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.others)?)
    }

    /// Does something where routers are: a process that is started meanwhile stays there.
    pub(super) fn among_routers<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        sched_setaffinity(None, &self.routers)?;
        let done = act();
        self.take()?;
        done
    }
}

fn set(cores: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    set
}
