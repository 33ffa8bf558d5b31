//! Measures what the server used while operations ran.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};

use crate::{
    client::Homeserver,
    processes::{Memory, ProcessError, Processes},
    report::Usage,
};

type Cpu = BTreeMap<String, Duration>;
type MemoryByName = BTreeMap<String, Memory>;

/// Reading `smaps_rollup` walks a process's page tables, so that reading it often would slow the server down: there is
/// at least this time between readings, and
const MEMORY_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// at least so many times what the last one took, which bounds readings to one part in so many of a core.
const MEMORY_REST: u32 = 50;

/// Watches the server's processes.
#[derive(Debug)]
pub(crate) struct Watch {
    server: Processes,
    own: Processes,
    homeserver: Arc<Homeserver>,
    settle_max: Duration,
}

impl Watch {
    /// Watches `server`; `settle_max` bounds each wait for it to become quiet.
    pub(crate) fn new(
        server: Processes,
        homeserver: Arc<Homeserver>,
        settle_max: Duration,
    ) -> Result<Self, ProcessError> {
        Ok(Self { server, own: Processes::own()?, homeserver, settle_max })
    }

    /// Waits until the server has finished what it does after it answered, such as caches, notifications and clean-up:
    /// until it uses less than a twentieth of a core for half a second, and no longer than the bound. Returns whether
    /// it became quiet. Without known processes there is nothing to see, and the wait is a short one.
    pub(crate) async fn settle(&self) -> Result<bool, ProcessError> {
        const WINDOW: Duration = Duration::from_millis(500);
        if self.server.is_empty() {
            tokio::time::sleep(WINDOW).await;
            return Ok(true);
        }
        let deadline = Instant::now() + self.settle_max;
        let mut before = sum(&self.server.cpu()?);
        while Instant::now() < deadline {
            tokio::time::sleep(WINDOW).await;
            let now = sum(&self.server.cpu()?);
            if now.saturating_sub(before) <= WINDOW / 20 {
                return Ok(true);
            }
            before = now;
        }
        Ok(false)
    }

    /// What the server's processes hold now; none when they are not known.
    pub(crate) fn memory(&self) -> Result<Option<MemoryByName>, ProcessError> {
        if self.server.is_empty() { Ok(None) } else { self.server.memory().map(Some) }
    }

    /// Waits for quiet, then begins to measure.
    pub(crate) async fn begin(&self) -> anyhow::Result<Measurement<'_>> {
        self.settle().await?;
        Ok(Measurement {
            watch: self,
            sampler: Sampler::start(self.server.clone()),
            cpu: self.server.cpu()?,
            own_cpu: self.own.cpu()?,
            bytes_received: self.homeserver.bytes_received(),
            started: Instant::now(),
        })
    }
}

/// A measurement under way.
#[derive(Debug)]
pub(crate) struct Measurement<'a> {
    watch: &'a Watch,
    sampler: Sampler,
    cpu: Cpu,
    own_cpu: Cpu,
    bytes_received: u64,
    started: Instant,
}

impl Measurement<'_> {
    /// Ends the measurement: the wall clock stops now, while CPU time is counted until the server is quiet again, so
    /// that work put off until after the answer counts too.
    pub(crate) async fn end(self) -> anyhow::Result<Usage> {
        let wall = self.started.elapsed();
        let watch = self.watch;
        let generator = spent(&self.own_cpu, &watch.own.cpu()?);
        let bytes_received = watch.homeserver.bytes_received() - self.bytes_received;
        let during = spent(&self.cpu, &watch.server.cpu()?);
        let became_quiet = watch.settle().await?;
        let whole = spent(&self.cpu, &watch.server.cpu()?);
        let peak = self.sampler.stop()?;
        Ok(Usage {
            known: !watch.server.is_empty(),
            wall_seconds: wall.as_secs_f64(),
            cpu_seconds: sum(&whole).as_secs_f64(),
            cpu_seconds_after: sum(&whole).saturating_sub(sum(&during)).as_secs_f64(),
            cpu_seconds_by_process: whole.into_iter().map(|(name, cpu)| (name, cpu.as_secs_f64())).collect(),
            became_quiet,
            peak_memory: peak.sum,
            peak_memory_by_process: peak.by_process,
            generator_cpu_seconds: sum(&generator).as_secs_f64(),
            bytes_received,
        })
    }
}

fn sum(cpu: &Cpu) -> Duration {
    cpu.values().sum()
}

/// What was used between two readings, by name.
fn spent(before: &Cpu, after: &Cpu) -> Cpu {
    after
        .iter()
        .map(|(name, now)| {
            let then = before.get(name).copied().unwrap_or_default();
            (name.clone(), now.saturating_sub(then))
        })
        .collect()
}

/// The highest memory seen. The peak of the sum may be below the sum of peaks.
#[derive(Debug, Default, PartialEq)]
struct Peak {
    sum: Memory,
    by_process: MemoryByName,
}

impl Peak {
    fn raise(&mut self, now: MemoryByName) {
        let mut sum = Memory::default();
        for (name, memory) in now {
            sum += memory;
            let peak = self.by_process.entry(name).or_default();
            *peak = highest(*peak, memory);
        }
        self.sum = highest(self.sum, sum);
    }
}

fn highest(one: Memory, other: Memory) -> Memory {
    Memory { rss: one.rss.max(other.rss), pss: one.pss.max(other.pss) }
}

/// Reads memory at intervals in a thread of its own, so that reading never delays a request.
#[derive(Debug)]
struct Sampler {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Result<Peak, ProcessError>>,
}

impl Sampler {
    fn start(processes: Processes) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut peak = Peak::default();
            loop {
                let begun = Instant::now();
                peak.raise(processes.memory()?);
                let rest = MEMORY_INTERVAL_MIN.max(begun.elapsed() * MEMORY_REST);
                // The sender is dropped to end the thread, which then reads once more.
                if stopped.recv_timeout(rest) != Err(mpsc::RecvTimeoutError::Timeout) {
                    peak.raise(processes.memory()?);
                    return Ok(peak);
                }
            }
        });
        Self { stop, thread }
    }

    fn stop(self) -> anyhow::Result<Peak> {
        // A thread that ended early reports why when joined.
        drop(self.stop);
        self.thread
            .join()
            .map_err(|_panic| anyhow!("the thread that reads memory panicked"))?
            .context("read the server's memory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(pss: u64) -> Memory {
        Memory { rss: 2 * pss, pss }
    }

    fn cpu(entries: &[(&str, u64)]) -> Cpu {
        entries.iter().map(|(name, millis)| ((*name).to_owned(), Duration::from_millis(*millis))).collect()
    }

    /// What is spent is the difference by name, and a new name counts from zero.
    #[test]
    fn spent_is_the_difference() {
        let spent = spent(&cpu(&[("server", 500)]), &cpu(&[("server", 1_250), ("database", 40)]));
        assert_eq!(spent, cpu(&[("server", 750), ("database", 40)]));
        assert_eq!(sum(&spent), Duration::from_millis(790));
    }

    /// The peak of the sum is of one moment: processes that peak one after the other do not add up.
    #[test]
    fn the_peak_is_of_one_moment() {
        let mut peak = Peak::default();
        peak.raise(BTreeMap::from([("server".to_owned(), memory(100)), ("database".to_owned(), memory(10))]));
        peak.raise(BTreeMap::from([("server".to_owned(), memory(40)), ("database".to_owned(), memory(50))]));
        assert_eq!(peak.sum, memory(110));
        assert_eq!(peak.by_process["server"], memory(100));
        assert_eq!(peak.by_process["database"], memory(50));
    }
}
