//! What a run found, for people and as JSON.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
};

use serde::{Deserialize, Serialize};

use crate::{processes::Memory, statistics::Summary};

/// Distinct failures that a report keeps; more are counted without their text.
const FAILURES_NAMED_MAX: usize = 12;

/// A whole run against one server.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The name that the command line gave the server.
    pub(crate) name: String,
    /// The server's URL.
    pub(crate) url: String,
    /// The seed of all chance.
    pub(crate) seed: u64,
    /// What tells this run's accounts from those of others.
    pub(crate) run: String,
    /// Memory of the quiet server before anything was asked of it, by process.
    pub(crate) memory_before: Option<BTreeMap<String, Memory>>,
    /// The scenarios in the order in which they ran.
    pub(crate) scenarios: Vec<Outcome>,
    /// Scenarios that could not run to their end, and why.
    pub(crate) broken: BTreeMap<String, String>,
}

/// What one scenario found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The scenario's name on the command line.
    pub(crate) scenario: String,
    /// What is counted, in the plural: "messages", "deliveries", …
    pub(crate) operation: String,
    /// How many of them succeeded.
    pub(crate) operations: usize,
    /// Operations a second of the time that they took.
    pub(crate) per_second: f64,
    /// CPU seconds of the server for 1,000 operations; none when its processes are not known.
    pub(crate) cpu_seconds_per_1000: Option<f64>,
    /// Delays; the first is the one that the scenario is about.
    pub(crate) delays: Vec<Delays>,
    /// What went wrong.
    pub(crate) faults: Faults,
    /// What the server and the load generator used.
    pub(crate) usage: Usage,
    /// Sizes that the scenario ran with, and whatever else it measured.
    pub(crate) figures: BTreeMap<String, f64>,
}

/// Delays of one kind.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Delays {
    /// From what to what.
    pub(crate) what: String,
    /// Their summary.
    #[serde(flatten)]
    pub(crate) summary: Summary,
}

/// What the server used, and what we did.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Whether the server's processes were named; all that follows about the server is zero otherwise.
    pub(crate) known: bool,
    /// From the first operation to the last.
    pub(crate) wall_seconds: f64,
    /// CPU time of the server until it was quiet after the last operation.
    pub(crate) cpu_seconds: f64,
    /// The part of it after the last operation.
    pub(crate) cpu_seconds_after: f64,
    /// CPU time by process.
    pub(crate) cpu_seconds_by_process: BTreeMap<String, f64>,
    /// Whether the server became quiet in the time that it was given.
    pub(crate) became_quiet: bool,
    /// The most memory of all processes together, at one moment.
    pub(crate) peak_memory: Memory,
    /// The most memory of each process.
    pub(crate) peak_memory_by_process: BTreeMap<String, Memory>,
    /// CPU time of this program.
    pub(crate) generator_cpu_seconds: f64,
    /// Bytes of all bodies received.
    pub(crate) bytes_received: u64,
}

/// What went wrong in a scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Faults {
    /// Requests that failed, or were answered wrongly.
    pub(crate) failed: usize,
    /// Things that should have arrived and did not.
    pub(crate) missing: usize,
    /// Things that arrived more than once.
    pub(crate) duplicated: usize,
    /// Failures by their text.
    pub(crate) failures: BTreeMap<String, usize>,
}

impl Faults {
    /// Counts a failure.
    pub(crate) fn fail(&mut self, cause: impl Display) {
        self.failed += 1;
        self.name(cause.to_string(), 1);
    }

    fn name(&mut self, text: String, count: usize) {
        if self.failures.len() < FAILURES_NAMED_MAX || self.failures.contains_key(&text) {
            *self.failures.entry(text).or_default() += count;
        }
    }

    /// Takes over what another counted.
    pub(crate) fn add(&mut self, other: Self) {
        self.failed += other.failed;
        self.missing += other.missing;
        self.duplicated += other.duplicated;
        for (text, count) in other.failures {
            self.name(text, count);
        }
    }

    /// Everything that went wrong, in one number.
    pub(crate) fn total(&self) -> usize {
        self.failed + self.missing + self.duplicated
    }
}

impl Outcome {
    /// An outcome of `operations` things done, with rates that follow from `usage`.
    pub(crate) fn new(operation: &str, operations: usize, usage: Usage) -> Self {
        let per_1000 = |seconds: f64| seconds * 1_000.0 / operations as f64;
        Self {
            operation: operation.to_owned(),
            operations,
            per_second: if usage.wall_seconds > 0.0 { operations as f64 / usage.wall_seconds } else { 0.0 },
            cpu_seconds_per_1000: (usage.known && operations > 0).then(|| per_1000(usage.cpu_seconds)),
            usage,
            ..Self::default()
        }
    }

    /// With a summary of delays; the first added is the main one.
    pub(crate) fn delays(mut self, what: &str, delays: &[std::time::Duration]) -> Self {
        self.delays.push(Delays { what: what.to_owned(), summary: Summary::of(delays) });
        self
    }

    /// With what went wrong.
    pub(crate) fn faults(mut self, faults: Faults) -> Self {
        self.faults.add(faults);
        self
    }

    /// With one more figure.
    pub(crate) fn figure(mut self, what: &str, value: f64) -> Self {
        self.figures.insert(what.to_owned(), value);
        self
    }
}

impl Report {
    /// Whether every scenario ran without a fault.
    pub(crate) fn is_clean(&self) -> bool {
        self.broken.is_empty() && self.scenarios.iter().all(|outcome| outcome.faults.total() == 0)
    }
}

/// Bytes as mebibytes.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usage = &self.usage;
        writeln!(out, "{}", self.scenario)?;
        writeln!(
            out,
            "  {} {} in {:.2} s: {:.1} a second",
            self.operations, self.operation, usage.wall_seconds, self.per_second
        )?;
        for Delays { what, summary } in &self.delays {
            writeln!(
                out,
                "  {what}: p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms, longest {:.1} ms ({})",
                summary.p50_ms, summary.p95_ms, summary.p99_ms, summary.max_ms, summary.count
            )?;
        }
        if let Some(per_1000) = self.cpu_seconds_per_1000 {
            write!(
                out,
                "  server: {per_1000:.4} CPU s per 1,000 {} ({:.2} s, of it {:.2} s after the last;",
                self.operation, usage.cpu_seconds, usage.cpu_seconds_after
            )?;
            for (name, seconds) in &usage.cpu_seconds_by_process {
                write!(out, " {name} {seconds:.2} s")?;
            }
            writeln!(out, "){}", if usage.became_quiet { "" } else { ", and not quiet yet" })?;
            write!(
                out,
                "  peak memory: Pss {:.1} MiB, RSS {:.1} MiB (Pss:",
                mebibytes(usage.peak_memory.pss),
                mebibytes(usage.peak_memory.rss)
            )?;
            for (name, memory) in &usage.peak_memory_by_process {
                write!(out, " {name} {:.1} MiB", mebibytes(memory.pss))?;
            }
            writeln!(out, ")")?;
        }
        writeln!(
            out,
            "  load generator: {:.2} CPU s, {:.2} MiB received",
            usage.generator_cpu_seconds,
            mebibytes(usage.bytes_received)
        )?;
        for (what, value) in &self.figures {
            writeln!(out, "  {what}: {value:.2}")?;
        }
        let faults = &self.faults;
        writeln!(
            out,
            "  errors: {} failed, {} missing, {} duplicated",
            faults.failed, faults.missing, faults.duplicated
        )?;
        for (text, count) in &faults.failures {
            writeln!(out, "    {count} × {text}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0.5 s for 250 operations are 2 s for 1,000.
    #[test]
    fn cpu_is_scaled_to_a_thousand_operations() {
        let usage = Usage { known: true, wall_seconds: 5.0, cpu_seconds: 0.5, ..Usage::default() };
        let outcome = Outcome::new("messages", 250, usage);
        assert_eq!(outcome.cpu_seconds_per_1000, Some(2.0));
        assert_eq!(outcome.per_second, 50.0);
    }

    /// Nothing done has no cost for each, and nothing known is not a cost of zero.
    #[test]
    fn no_cost_is_made_up() {
        let usage = || Usage { known: true, wall_seconds: 5.0, cpu_seconds: 0.5, ..Usage::default() };
        assert_eq!(Outcome::new("messages", 0, usage()).cpu_seconds_per_1000, None);
        let unknown = Usage { known: false, ..usage() };
        assert_eq!(Outcome::new("messages", 10, unknown).cpu_seconds_per_1000, None);
    }

    /// However many kinds of failure there are, all are counted and a few named.
    #[test]
    fn failures_are_counted_beyond_those_named() {
        let mut faults = Faults::default();
        for number in 0..100 {
            faults.fail(format!("failure {number}"));
            faults.fail("failure 0");
        }
        assert_eq!(faults.failed, 200);
        assert_eq!(faults.failures.len(), FAILURES_NAMED_MAX);
        assert_eq!(faults.failures["failure 0"], 101);
        let mut sum = Faults { missing: 1, ..Faults::default() };
        sum.add(faults);
        assert_eq!(sum.total(), 201);
    }

    /// A run with a fault, or a scenario that broke, is not clean.
    #[test]
    fn a_fault_makes_a_run_unclean() {
        let mut report = Report { scenarios: vec![Outcome::default()], ..Report::default() };
        assert!(report.is_clean());
        report.scenarios[0].faults.duplicated = 1;
        assert!(!report.is_clean());
        let broken = BTreeMap::from([("join".to_owned(), "no room".to_owned())]);
        assert!(!Report { broken, ..Report::default() }.is_clean());
    }
}
