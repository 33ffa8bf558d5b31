//! Several runs side by side, as Markdown.

use std::fmt::Write as _;

use crate::report::{Outcome, Report, mebibytes};

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Better {
    More,
    Less,
}

/// One row's figure of an outcome.
type Figure = fn(&Outcome) -> Option<f64>;

/// What is compared of each scenario.
const FIGURES: [(&str, Better, Figure); 7] = [
    ("a second", Better::More, |outcome| Some(outcome.per_second)),
    ("CPU s per 1,000", Better::Less, |outcome| outcome.cpu_seconds_per_1000),
    ("p50, ms", Better::Less, |outcome| outcome.delays.first().map(|delays| delays.summary.p50_ms)),
    ("p95, ms", Better::Less, |outcome| outcome.delays.first().map(|delays| delays.summary.p95_ms)),
    ("p99, ms", Better::Less, |outcome| outcome.delays.first().map(|delays| delays.summary.p99_ms)),
    ("peak memory, MiB", Better::Less, |outcome| outcome.usage.known.then(|| mebibytes(outcome.usage.peak_memory.pss))),
    ("errors", Better::Less, |outcome| Some(outcome.faults.total() as f64)),
];

/// Extra figures worth a row where a scenario has them.
const EXTRAS: [&str; 6] = [
    "KiB of memory a held poll",
    "bytes a sync",
    "bytes a list",
    "bytes a page",
    "ms to the first page of history",
    "MiB that the database grew",
];

/// A table of all reports. In parentheses, how many times better than the first each of the others is.
pub(crate) fn markdown(reports: &[Report]) -> String {
    let mut text = String::from("| scenario | |");
    for report in reports {
        // Writing to a string cannot fail, here and below.
        let _ = write!(text, " {} |", report.name);
    }
    text.push_str("\n| --- | --- |");
    text.push_str(&" ---: |".repeat(reports.len()));
    text.push('\n');

    let memory_before: Vec<Option<f64>> = reports
        .iter()
        .map(|report| {
            let memory = report.memory_before.as_ref()?;
            Some(mebibytes(memory.values().map(|memory| memory.pss).sum()))
        })
        .collect();
    row(&mut text, "before any load", "memory, MiB", Better::Less, &memory_before);
    for scenario in scenarios(reports) {
        let outcomes: Vec<Option<&Outcome>> =
            reports.iter().map(|report| report.scenarios.iter().find(|outcome| outcome.scenario == scenario)).collect();
        let operation = outcomes.iter().flatten().next().map_or("", |outcome| outcome.operation.as_str());
        let mut label = scenario.as_str();
        for (what, better, figure) in FIGURES {
            let what = match what {
                "a second" => format!("{operation} a second"),
                "CPU s per 1,000" => format!("CPU s per 1,000 {operation}"),
                other => other.to_owned(),
            };
            let values: Vec<Option<f64>> = outcomes.iter().map(|outcome| outcome.and_then(figure)).collect();
            if row(&mut text, label, &what, better, &values) {
                label = "";
            }
        }
        for what in EXTRAS {
            let values: Vec<Option<f64>> =
                outcomes.iter().map(|outcome| outcome.and_then(|outcome| outcome.figures.get(what).copied())).collect();
            row(&mut text, label, what, Better::Less, &values);
        }
    }
    for report in reports {
        for (scenario, cause) in &report.broken {
            let _ = writeln!(text, "\n{}: {scenario} could not be measured: {cause}", report.name);
        }
    }
    text
}

/// Every scenario that any report has, in the order of the first that has it.
fn scenarios(reports: &[Report]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for outcome in reports.iter().flat_map(|report| &report.scenarios) {
        if !names.contains(&outcome.scenario) {
            names.push(outcome.scenario.clone());
        }
    }
    names
}

/// Adds a row, unless nobody has the figure. Returns whether it did.
fn row(text: &mut String, label: &str, what: &str, better: Better, values: &[Option<f64>]) -> bool {
    if values.iter().all(Option::is_none) {
        return false;
    }
    let _ = write!(text, "| {label} | {what} |");
    let baseline = values.first().copied().flatten();
    for (column, value) in values.iter().enumerate() {
        match value {
            Some(value) => {
                let ratio = baseline.filter(|_| column > 0).and_then(|baseline| ratio(baseline, *value, better));
                let _ = write!(text, " {}{} |", number(*value), ratio.unwrap_or_default());
            }
            None => text.push_str(" – |"),
        }
    }
    text.push('\n');
    true
}

/// How many times better than the baseline, in parentheses; nothing when one of them is zero.
fn ratio(baseline: f64, value: f64, better: Better) -> Option<String> {
    if baseline <= 0.0 || value <= 0.0 {
        return None;
    }
    let times = match better {
        Better::More => value / baseline,
        Better::Less => baseline / value,
    };
    Some(format!(" ({}×)", number(times)))
}

/// A number to three digits or so.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::report::Usage;

    fn report(name: &str, cpu_seconds: f64, wall_seconds: f64, delay_ms: u64) -> Report {
        let usage = Usage { known: true, cpu_seconds, wall_seconds, ..Usage::default() };
        let outcome = Outcome::new("messages", 1_000, usage).delays("send", &[Duration::from_millis(delay_ms)]);
        let outcome = Outcome { scenario: "send-one-room".to_owned(), ..outcome };
        Report { name: name.to_owned(), scenarios: vec![outcome], ..Report::default() }
    }

    /// A ratio above one is better, whether more or less of the figure is.
    #[test]
    fn ratios_say_how_many_times_better() {
        let table = markdown(&[report("Other", 24.0, 20.0, 300), report("Myelin", 0.5, 2.0, 12)]);
        for row in [
            "| scenario | | Other | Myelin |",
            "| send-one-room | messages a second | 50.0 | 500 (10.0×) |",
            "|  | CPU s per 1,000 messages | 24.0 | 0.500 (48.0×) |",
            "|  | p95, ms | 300 | 12.0 (25.0×) |",
            "|  | errors | 0 | 0 |",
        ] {
            assert!(table.contains(row), "no {row} in\n{table}");
        }
    }

    /// A scenario that one of them lacks is a gap in the table, and its cause is told.
    #[test]
    fn what_is_lacking_is_shown() {
        let mut broken = Report { name: "Broken".to_owned(), ..Report::default() };
        broken.broken = BTreeMap::from([("send-one-room".to_owned(), "no answer".to_owned())]);
        let table = markdown(&[report("Other", 24.0, 20.0, 300), broken]);
        assert!(table.contains("| send-one-room | messages a second | 50.0 | – |"), "{table}");
        assert!(table.contains("Broken: send-one-room could not be measured: no answer"), "{table}");
    }
}
