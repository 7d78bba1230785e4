//! How much of the processor and of memory a process gets: a control group for each, of version 1 or 2, whichever this machine has.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;

/// The directory in which all groups of this program are.
pub struct Quotas {
    dir: PathBuf,
    /// The same for memory, where there is a controller for it.
    memory: Option<PathBuf>,
    v2: bool,
}

/// The quota is of so long a time.
const PERIOD_US: u64 = 100_000;

const PREFIX: &str = "phalanx-storm-";

impl Quotas {
    /// `None` where the machine has no controller that we may use.
    pub fn new() -> anyhow::Result<Option<Self>> {
        let root = Path::new("/sys/fs/cgroup");
        let v2 = fs::read_to_string(root.join("cgroup.controllers"));
        let (root, v2) = match v2 {
            Ok(list) if list.split_whitespace().any(|c| c == "cpu") => {
                // Children of the root get the controller if it is handed down.
                fs::write(root.join("cgroup.subtree_control"), "+cpu")
                    .context("handing the cpu controller down")?;
                (root.to_owned(), true)
            }
            _ if root.join("cpu/cpu.cfs_quota_us").is_file() || root.join("cpu/cgroup.procs").is_file() => {
                (root.join("cpu"), false)
            }
            _ => return Ok(None),
        };
        sweep(&root);
        let dir = root.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let mut quotas = Self { dir, memory: None, v2 };
        if v2 {
            fs::write(quotas.dir.join("cgroup.subtree_control"), "+cpu")?;
            // Whoever may have the one may have the other, where the machine has it.
            let both = [root.join("cgroup.subtree_control"), quotas.dir.join("cgroup.subtree_control")];
            if both.iter().all(|file| fs::write(file, "+memory").is_ok()) {
                quotas.memory = Some(quotas.dir.clone());
            }
        } else {
            let root = Path::new("/sys/fs/cgroup/memory");
            if root.join("memory.limit_in_bytes").is_file() {
                sweep(root);
                let dir = root.join(format!("{PREFIX}{}", std::process::id()));
                fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
                quotas.memory = Some(dir);
            }
        }
        Ok(Some(quotas))
    }

    fn group(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn has_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// Lets a process have so many bytes more than it has.
    pub fn squeeze(&self, name: &str, pid: u32, more: u64) -> anyhow::Result<()> {
        let group = self.memory.as_ref().context("nobody asks where there is no controller")?.join(name);
        if !group.is_dir() {
            fs::create_dir(&group).with_context(|| format!("creating {}", group.display()))?;
        }
        fs::write(group.join("cgroup.procs"), pid.to_string()).context("moving a process")?;
        // What it had before it came counts elsewhere.
        let file = if self.v2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(group.join(file), more.to_string()).context(file)
    }

    /// Lets it have all that there is.
    pub fn loosen(&self, name: &str) -> anyhow::Result<()> {
        let group = self.memory.as_ref().context("nobody asks where there is no controller")?.join(name);
        let (file, all) = if self.v2 { ("memory.max", "max") } else { ("memory.limit_in_bytes", "-1") };
        fs::write(group.join(file), all).context(file)
    }

    /// Lets a process have `percent` of one processor.
    pub fn starve(&self, name: &str, pid: u32, percent: u64) -> anyhow::Result<()> {
        let group = self.group(name);
        if !group.is_dir() {
            fs::create_dir(&group).with_context(|| format!("creating {}", group.display()))?;
        }
        self.set(&group, Some(percent))?;
        fs::write(group.join("cgroup.procs"), pid.to_string()).context("moving a process")
    }

    /// Lets its processes have all that there is.
    pub fn feed(&self, name: &str) -> anyhow::Result<()> {
        self.set(&self.group(name), None)
    }

    fn set(&self, group: &Path, percent: Option<u64>) -> anyhow::Result<()> {
        let quota = percent.map(|p| p * PERIOD_US / 100);
        if self.v2 {
            let quota = quota.map_or("max".into(), |us| us.to_string());
            fs::write(group.join("cpu.max"), format!("{quota} {PERIOD_US}")).context("cpu.max")
        } else {
            fs::write(group.join("cpu.cfs_period_us"), PERIOD_US.to_string()).context("cpu.cfs_period_us")?;
            let quota = quota.map_or("-1".into(), |us| us.to_string());
            fs::write(group.join("cpu.cfs_quota_us"), quota).context("cpu.cfs_quota_us")
        }
    }
}

impl Drop for Quotas {
    fn drop(&mut self) {
        let own = self.memory.iter().filter(|dir| **dir != self.dir).chain([&self.dir]);
        for dir in own {
            if let Err(error) = remove(dir) {
                eprintln!("storm: {} stays behind: {error}", dir.display());
            }
        }
    }
}

/// Removes groups, which must be empty: the kernel refuses otherwise.
fn remove(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir(&path)?;
        }
    }
    fs::remove_dir(dir)
}

/// Removes what others left behind that were killed.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).filter(|pid| pid.parse::<u32>().is_ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Not ours to force: a group that is not empty stays.
            let _stays = remove(&entry.path());
        }
    }
}
