//! What the server's processes used: CPU time and memory, read from `/proc`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Why the use of a process could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// The operating system refused a read.
    #[error("read {path}")]
    Read {
        /// The file that could not be read.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file of `/proc` did not have the documented form.
    #[error("{path} has an unknown form")]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// The process ended, or another one has its number now.
    #[error("process {pid} ({label}) is gone")]
    Gone {
        /// The process's number.
        pid: u32,
        /// The name that the command line gave it.
        label: String,
    },
    /// Children came and went faster than they could be counted.
    #[error("the children of process {pid} do not hold still")]
    Restless {
        /// The root of the tree.
        pid: u32,
    },
}

/// How much of a process's family is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The process with its threads.
    Process,
    /// The process with all its descendants, those that have exited included.
    Tree,
}

/// `[NAME=]PID` of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedPid {
    label: Option<String>,
    pid: u32,
}

impl FromStr for NamedPid {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (label, pid) = match text.split_once('=') {
            Some((label, pid)) => (Some(label.to_owned()), pid),
            None => (None, text),
        };
        Ok(Self { label, pid: pid.parse()? })
    }
}

/// One process, or tree of processes, whose use counts as the server's.
#[derive(Clone, Debug)]
struct Target {
    label: String,
    pid: u32,
    started: u64,
    extent: Extent,
}

/// Memory in bytes. `pss` shares pages that several processes map among them, so that a sum over processes is honest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Resident set size.
    pub(crate) rss: u64,
    /// Proportional set size.
    pub(crate) pss: u64,
}

impl std::ops::AddAssign for Memory {
    fn add_assign(&mut self, other: Self) {
        self.rss += other.rss;
        self.pss += other.pss;
    }
}

/// The server's processes.
#[derive(Clone, Debug)]
pub(crate) struct Processes {
    proc: PathBuf,
    ticks_per_second: u64,
    targets: Vec<Target>,
}

/// One line of `/proc/PID/stat`, as far as it matters here. Times are in clock ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    own: u64,
    reaped_children: u64,
    started: u64,
}

impl Processes {
    /// Looks up the named processes, each of which must be running.
    pub(crate) fn find(processes: &[NamedPid], trees: &[NamedPid]) -> Result<Self, ProcessError> {
        Self::find_in(PathBuf::from("/proc"), rustix::param::clock_ticks_per_second(), processes, trees)
    }

    /// This very process: the load generator's own use.
    pub(crate) fn own() -> Result<Self, ProcessError> {
        let own = NamedPid { label: Some("load generator".to_owned()), pid: std::process::id() };
        Self::find(&[own], &[])
    }

    fn find_in(
        proc: PathBuf,
        ticks_per_second: u64,
        processes: &[NamedPid],
        trees: &[NamedPid],
    ) -> Result<Self, ProcessError> {
        let extents = processes
            .iter()
            .map(|named| (named, Extent::Process))
            .chain(trees.iter().map(|named| (named, Extent::Tree)));
        let mut targets = Vec::new();
        for (named, extent) in extents {
            let label = match &named.label {
                Some(label) => label.clone(),
                None => format!("{}", named.pid),
            };
            let Some(stat) = read_stat(&proc, named.pid)? else {
                return Err(ProcessError::Gone { pid: named.pid, label });
            };
            targets.push(Target { label, pid: named.pid, started: stat.started, extent });
        }
        Ok(Self { proc, ticks_per_second, targets })
    }

    /// Whether there is anything to measure.
    pub(crate) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// CPU time, user and system, that each target used since it started, by label.
    pub(crate) fn cpu(&self) -> Result<BTreeMap<String, Duration>, ProcessError> {
        let mut used = BTreeMap::new();
        for target in &self.targets {
            let ticks = match target.extent {
                Extent::Process => self.alive(target, read_stat(&self.proc, target.pid)?)?.own,
                Extent::Tree => {
                    let tree = self.settled_tree(target)?;
                    tree.iter().map(|stat| stat.own + stat.reaped_children).sum()
                }
            };
            *used.entry(target.label.clone()).or_default() +=
                Duration::from_secs_f64(ticks as f64 / self.ticks_per_second as f64);
        }
        Ok(used)
    }

    /// Memory that each target holds now, by label.
    pub(crate) fn memory(&self) -> Result<BTreeMap<String, Memory>, ProcessError> {
        let mut held: BTreeMap<String, Memory> = BTreeMap::new();
        for target in &self.targets {
            let root = self.alive(target, read_stat(&self.proc, target.pid)?)?;
            let members = match target.extent {
                Extent::Process => vec![root],
                Extent::Tree => descendants(&all_stats(&self.proc)?, target.pid),
            };
            let sum = held.entry(target.label.clone()).or_default();
            for member in members {
                if let Some(memory) = read_memory(&self.proc, member.pid)? {
                    *sum += memory;
                }
            }
        }
        Ok(held)
    }

    /// The same process as at the start, or an error: a server that crashed must not pass for a thrifty one.
    fn alive(&self, target: &Target, stat: Option<Stat>) -> Result<Stat, ProcessError> {
        stat.filter(|stat| stat.started == target.started)
            .ok_or_else(|| ProcessError::Gone { pid: target.pid, label: target.label.clone() })
    }

    /// The tree's processes, read while none came or went.
    ///
    /// A child that exits between the reading of its parent and its own would be in neither. It is then missing from
    /// both of two readings, but by the second its time has moved to its parent: so the second counts, once both
    /// name the same processes.
    fn settled_tree(&self, target: &Target) -> Result<Vec<Stat>, ProcessError> {
        const TRIES: usize = 20;
        let read = || -> Result<Vec<Stat>, ProcessError> {
            let tree = descendants(&all_stats(&self.proc)?, target.pid);
            self.alive(target, tree.iter().find(|stat| stat.pid == target.pid).copied())?;
            Ok(tree)
        };
        let mut earlier = read()?;
        for _ in 0..TRIES {
            let later = read()?;
            if identities(&earlier) == identities(&later) {
                return Ok(later);
            }
            earlier = later;
        }
        Err(ProcessError::Restless { pid: target.pid })
    }
}

/// Process numbers are used again, but not with the same starting time.
fn identities(stats: &[Stat]) -> BTreeSet<(u32, u64)> {
    stats.iter().map(|stat| (stat.pid, stat.started)).collect()
}

/// The process `root` and all below it.
fn descendants(stats: &[Stat], root: u32) -> Vec<Stat> {
    let mut children: BTreeMap<u32, Vec<Stat>> = BTreeMap::new();
    for stat in stats {
        children.entry(stat.parent).or_default().push(*stat);
    }
    let mut found: Vec<Stat> = stats.iter().filter(|stat| stat.pid == root).copied().collect();
    let mut next = 0;
    while let Some(stat) = found.get(next) {
        // Each process has one parent, so that taking its children out of the map visits it once.
        let below = children.remove(&stat.pid).unwrap_or_default();
        found.extend(below);
        next += 1;
    }
    found
}

/// Every process that can be read.
fn all_stats(proc: &Path) -> Result<Vec<Stat>, ProcessError> {
    let entries = fs::read_dir(proc).map_err(|source| ProcessError::Read { path: proc.to_owned(), source })?;
    let mut stats = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| ProcessError::Read { path: proc.to_owned(), source })?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        stats.extend(read_stat(proc, pid)?);
    }
    Ok(stats)
}

/// `/proc/PID/stat`; absent when there is no such process.
fn read_stat(proc: &Path, pid: u32) -> Result<Option<Stat>, ProcessError> {
    let path = proc.join(pid.to_string()).join("stat");
    let Some(text) = read_if_there(&path)? else {
        return Ok(None);
    };
    parse_stat(&text).map(Some).ok_or(ProcessError::Form { path })
}

/// Parses the line as proc_pid_stat(5) numbers it. The second field, the command's name in parentheses, may itself
/// hold spaces and parentheses, so that the rest is counted from the last closing one.
fn parse_stat(text: &str) -> Option<Stat> {
    let pid = text.split_ascii_whitespace().next()?.parse().ok()?;
    let after_name = &text[text.rfind(')')? + 1..];
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    // `fields` begins with field 3, the state.
    let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
    let ticks = |field: usize| number(field).and_then(|value| u64::try_from(value).ok());
    Some(Stat {
        pid,
        parent: u32::try_from(number(4)?).ok()?,
        own: ticks(14)? + ticks(15)?,
        reaped_children: ticks(16)? + ticks(17)?,
        started: ticks(22)?,
    })
}

/// A process's memory from `smaps_rollup`; absent when it has just exited.
fn read_memory(proc: &Path, pid: u32) -> Result<Option<Memory>, ProcessError> {
    let path = proc.join(pid.to_string()).join("smaps_rollup");
    let Some(text) = read_if_there(&path)? else {
        return Ok(None);
    };
    // A process that is a zombie has no memory, and an empty file.
    if text.is_empty() {
        return Ok(None);
    }
    parse_memory(&text).map(Some).ok_or(ProcessError::Form { path })
}

fn parse_memory(text: &str) -> Option<Memory> {
    let bytes = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    };
    Some(Memory { rss: bytes("Rss:")?, pss: bytes("Pss:")? })
}

/// Reads a file of a process that may exit at any moment: `ESRCH` is what `/proc` answers in the middle of that.
fn read_if_there(path: &Path) -> Result<Option<String>, ProcessError> {
    const NO_SUCH_PROCESS: i32 = 3;
    match fs::read(path) {
        // A command's name need not be UTF-8.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(NO_SUCH_PROCESS) => Ok(None),
        Err(source) => Err(ProcessError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;

    /// Ticks of a fake process: user, system, reaped children's user, reaped children's system.
    type Ticks = [u64; 4];

    /// A `/proc` of our own making.
    struct FakeProc(TempDir);

    impl FakeProc {
        fn new() -> Self {
            Self(TempDir::new().unwrap())
        }

        fn process(&self, pid: u32, parent: u32, name: &str, ticks: Ticks, started: u64) {
            let folder = self.0.path().join(pid.to_string());
            fs::create_dir_all(&folder).unwrap();
            let [user, system, children_user, children_system] = ticks;
            let stat = format!(
                "{pid} ({name}) S {parent} 1 1 0 -1 4194304 9 8 7 6 {user} {system} {children_user} {children_system} \
                 20 0 1 0 {started} 3133440 390\n"
            );
            fs::write(folder.join("stat"), stat).unwrap();
            let memory = format!("0-1 ---p 00000000 00:00 0 [rollup]\nRss: {pid} kB\nPss:   {parent} kB\n");
            fs::write(folder.join("smaps_rollup"), memory).unwrap();
        }

        fn exit(&self, pid: u32) {
            fs::remove_dir_all(self.0.path().join(pid.to_string())).unwrap();
        }

        fn find(&self, processes: &[&str], trees: &[&str]) -> Result<Processes, ProcessError> {
            let named = |list: &[&str]| -> Vec<NamedPid> { list.iter().map(|text| text.parse().unwrap()).collect() };
            Processes::find_in(self.0.path().to_owned(), 100, &named(processes), &named(trees))
        }
    }

    fn seconds(used: &BTreeMap<String, Duration>, label: &str) -> f64 {
        used[label].as_secs_f64()
    }

    /// A process counts its user and system time, and not its children's.
    #[test]
    fn a_process_is_counted_alone() {
        let proc = FakeProc::new();
        proc.process(10, 1, "server", [150, 50, 700, 700], 5);
        proc.process(11, 10, "child", [900, 0, 0, 0], 6);
        let used = proc.find(&["server=10"], &[]).unwrap().cpu().unwrap();
        assert_eq!(seconds(&used, "server"), 2.0);
    }

    /// A tree counts every descendant, running or reaped, and no one else's.
    #[test]
    fn a_tree_is_counted_with_its_exited_children() {
        let proc = FakeProc::new();
        proc.process(10, 1, "postgres", [100, 0, 30, 20], 5);
        proc.process(11, 10, "postgres", [200, 100, 0, 0], 6);
        proc.process(12, 11, "grandchild", [0, 50, 0, 100], 7);
        proc.process(13, 1, "stranger", [9_999, 0, 0, 0], 8);
        let used = proc.find(&[], &["database=10"]).unwrap().cpu().unwrap();
        assert_eq!(seconds(&used, "database"), 6.0);
    }

    /// When a child exits and is reaped, its time moves to its parent, and the tree's sum stays.
    #[test]
    fn a_reaped_child_is_not_lost() {
        let proc = FakeProc::new();
        proc.process(10, 1, "postgres", [100, 0, 0, 0], 5);
        proc.process(11, 10, "backend", [200, 100, 0, 0], 6);
        let processes = proc.find(&[], &["10"]).unwrap();
        let before = processes.cpu().unwrap();
        proc.exit(11);
        proc.process(10, 1, "postgres", [100, 0, 200, 100], 5);
        assert_eq!(processes.cpu().unwrap(), before);
        assert_eq!(seconds(&before, "10"), 4.0);
    }

    /// A command's name may look like the fields that follow it.
    #[test]
    fn a_name_with_parentheses_and_spaces_is_skipped() {
        let proc = FakeProc::new();
        proc.process(10, 1, "a) R 1 2 (b", [100, 0, 0, 0], 5);
        let used = proc.find(&["10"], &[]).unwrap().cpu().unwrap();
        assert_eq!(seconds(&used, "10"), 1.0);
    }

    /// A server that crashed, or whose number another process has taken, is an error and no saving.
    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let proc = FakeProc::new();
        assert!(matches!(proc.find(&["10"], &[]), Err(ProcessError::Gone { pid: 10, .. })));
        proc.process(10, 1, "server", [100, 0, 0, 0], 5);
        let process = proc.find(&["10"], &[]).unwrap();
        let tree = proc.find(&[], &["10"]).unwrap();
        proc.process(10, 1, "server", [1, 0, 0, 0], 77);
        assert!(matches!(process.cpu(), Err(ProcessError::Gone { .. })));
        assert!(matches!(tree.cpu(), Err(ProcessError::Gone { .. })));
        assert!(matches!(tree.memory(), Err(ProcessError::Gone { .. })));
    }

    /// A line that is cut short is an error, not a panic or a zero.
    #[test]
    fn a_broken_line_is_an_error() {
        assert_eq!(parse_stat("10 (server) S 1 1 1 0"), None);
        assert_eq!(parse_stat("10 server S 1"), None);
        assert_eq!(parse_stat(""), None);
        assert_eq!(parse_memory("Rss: 5 kB\n"), None);
    }

    /// Memory is the sum over the tree, in bytes; targets of one name are one sum.
    #[test]
    fn memory_is_summed_by_label() {
        let proc = FakeProc::new();
        proc.process(10, 1, "postgres", [0; 4], 5);
        proc.process(11, 10, "backend", [0; 4], 6);
        proc.process(20, 2, "server", [0; 4], 7);
        let processes = proc.find(&["all=20"], &["all=10"]).unwrap();
        let memory = processes.memory().unwrap();
        assert_eq!(memory["all"], Memory { rss: 41 * 1024, pss: 13 * 1024 });
    }

    /// On the real `/proc`: what a child burned is in its parent's tree after it was reaped, and not in its process.
    #[test]
    fn a_real_child_counts_after_it_exits() {
        let label = NamedPid { label: Some("us".to_owned()), pid: std::process::id() };
        let tree = Processes::find(&[], std::slice::from_ref(&label)).unwrap();
        let process = Processes::find(std::slice::from_ref(&label), &[]).unwrap();
        let (tree_before, process_before) = (tree.cpu().unwrap(), process.cpu().unwrap());
        let burn = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        assert!(Command::new("sh").args(["-c", burn]).status().unwrap().success());
        let in_tree = seconds(&tree.cpu().unwrap(), "us") - seconds(&tree_before, "us");
        let in_process = seconds(&process.cpu().unwrap(), "us") - seconds(&process_before, "us");
        assert!(in_tree - in_process >= 0.03, "the child's {in_tree} s beside our {in_process} s");
        assert!(process.memory().unwrap()["us"].pss > 0);
    }
}
