//! Front doors: what TLS and handing requests on cost, for several programs in the same role, one after the other.

mod connections;
mod upstream;

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args;

use self::connections::{Client, Handshake, Plain};
pub(crate) use self::upstream::serve as serve_upstream;
use crate::{
    processes::{Memory, NamedPid, Processes},
    statistics::Summary,
};

/// How long a front door may take to come to rest after a measurement.
const REST_TIME: Duration = Duration::from_secs(1);

/// What is measured.
#[derive(Args, Debug)]
pub(crate) struct EdgeOptions {
    /// A front door: its name, where it speaks TLS for localhost, and its process. Repeat it; ratios are to the first.
    #[arg(long = "door", required = true, value_name = "NAME=ADDRESS=PID")]
    doors: Vec<DoorAddress>,
    /// The server behind all of them, which `myelin-load edge-upstream` is.
    #[arg(long, value_name = "ADDRESS")]
    upstream: SocketAddr,
    /// The root of their certificates, in PEM.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// New connections, with a full handshake, and as many with a resumed one.
    #[arg(long, default_value_t = 4000)]
    handshakes: usize,
    /// Requests on connections that stay.
    #[arg(long, default_value_t = 40_000)]
    requests: usize,
    /// Connections at once.
    #[arg(long, default_value_t = 16)]
    at_once: usize,
    /// Connections that wait.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
}

/// A front door on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DoorAddress {
    name: String,
    address: SocketAddr,
    process: NamedPid,
}

impl FromStr for DoorAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, '=');
        let (Some(name), Some(address), Some(process)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("it is NAME=ADDRESS=PID".to_owned());
        };
        Ok(Self {
            name: name.to_owned(),
            address: address.parse().map_err(|error| format!("{address}: {error}"))?,
            process: process.parse().map_err(|error| format!("{process}: {error}"))?,
        })
    }
}

/// What one front door came to.
#[derive(Debug, Default)]
struct Figures {
    full: Rate,
    resumed: Rate,
    requests: Rate,
    alone: Summary,
    /// Before and with the connections that wait.
    memory_before: Memory,
    memory_after: Memory,
    idle: usize,
}

/// Operations, and the CPU time of the front door that they took.
#[derive(Debug, Default)]
struct Rate {
    count: usize,
    wall: Duration,
    cpu: Duration,
    delays: Summary,
}

impl Rate {
    fn a_second(&self) -> f64 {
        self.count as f64 / self.wall.as_secs_f64()
    }

    fn cpu_ms_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e3 / self.count as f64
    }
}

/// A front door that is measured.
struct Door {
    client: Client,
    processes: Processes,
}

impl Door {
    fn cpu(&self) -> anyhow::Result<Duration> {
        Ok(self.processes.cpu()?.values().sum())
    }

    fn memory(&self) -> anyhow::Result<Memory> {
        let mut sum = Memory::default();
        self.processes.memory()?.into_values().for_each(|memory| sum += memory);
        Ok(sum)
    }

    /// Measures operations that return their delays.
    async fn rate(&self, operations: impl Future<Output = anyhow::Result<Vec<Duration>>>) -> anyhow::Result<Rate> {
        tokio::time::sleep(REST_TIME).await;
        let (cpu, begun) = (self.cpu()?, Instant::now());
        let delays = operations.await?;
        let wall = begun.elapsed();
        // What is put off until after the answer counts, too.
        tokio::time::sleep(REST_TIME).await;
        let cpu = self.cpu()?.saturating_sub(cpu);
        Ok(Rate { count: delays.len(), wall, cpu, delays: Summary::of(&delays) })
    }
}

/// Measures all front doors and writes a table.
pub(crate) async fn run(options: &EdgeOptions) -> anyhow::Result<String> {
    let direct = connections::alone(&mut Plain::to(options.upstream).await?, options.requests / 10).await?;
    let direct = Summary::of(&direct);
    let mut columns = Vec::new();
    for door in &options.doors {
        let figures = measure(door, options).await.with_context(|| format!("measure {}", door.name))?;
        columns.push((door.name.as_str(), figures));
    }
    Ok(table(&direct, &columns))
}

async fn measure(door: &DoorAddress, options: &EdgeOptions) -> anyhow::Result<Figures> {
    // A program may have several processes.
    let processes = Processes::find(&[], std::slice::from_ref(&door.process))?;
    let client = Client::new(door.address, &read(&options.ca)?)?;
    let door = Door { client, processes };
    let (count, at_once) = (options.handshakes, options.at_once);
    let full = door.rate(door.client.connect_often(Handshake::Full, count, at_once)).await?;
    let resumed = door.rate(door.client.connect_often(Handshake::Resumed, count, at_once)).await?;
    let requests = door.rate(door.client.ask_often(options.requests, at_once)).await?;
    let alone = {
        let mut connection = door.client.connect(Handshake::Full).await?;
        Summary::of(&connections::alone(&mut connection, options.requests / 10).await?)
    };
    let memory_before = door.memory()?;
    let waiting = door.client.hold(options.idle, at_once).await?;
    tokio::time::sleep(REST_TIME).await;
    let memory_after = door.memory()?;
    ensure!(waiting.len() == options.idle, "{} of {} connections stayed", waiting.len(), options.idle);
    Ok(Figures { full, resumed, requests, alone, memory_before, memory_after, idle: waiting.len() })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// One row of the table: what it is, its value, and whether more is better.
type Row<'a> = (&'a str, &'a dyn Fn(&Figures) -> f64, bool);

fn table(direct: &Summary, columns: &[(&str, Figures)]) -> String {
    let each = |memory: &Figures| {
        memory.memory_after.pss.saturating_sub(memory.memory_before.pss) as f64 / 1024.0 / memory.idle as f64
    };
    let rows: [Row<'_>; 11] = [
        ("new connections a second, full handshake", &|of| of.full.a_second(), true),
        ("CPU ms each", &|of| of.full.cpu_ms_each(), false),
        ("new connections a second, resumed", &|of| of.resumed.a_second(), true),
        ("CPU ms each", &|of| of.resumed.cpu_ms_each(), false),
        ("requests a second", &|of| of.requests.a_second(), true),
        ("CPU ms each", &|of| of.requests.cpu_ms_each(), false),
        ("p99, ms", &|of| of.requests.delays.p99_ms, false),
        ("added to a request alone, p50, ms", &|of| of.alone.p50_ms - direct.p50_ms, false),
        ("added to a request alone, p99, ms", &|of| of.alone.p99_ms - direct.p99_ms, false),
        ("memory with all idle connections, MiB", &|of| of.memory_after.pss as f64 / 1024.0 / 1024.0, false),
        ("KiB of memory an idle connection", &each, false),
    ];
    let mut text = "| |".to_owned();
    for (name, _) in columns {
        write!(text, " {name} |").expect("a String takes every write");
    }
    text.push_str("\n| --- |");
    text.push_str(&" ---: |".repeat(columns.len()));
    text.push('\n');
    for (what, value, more_is_better) in rows {
        write!(text, "| {what} |").expect("a String takes every write");
        let first = columns.first().map_or(f64::NAN, |(_, figures)| value(figures));
        for (number, (_, figures)) in columns.iter().enumerate() {
            let value = value(figures);
            let ratio = if more_is_better { value / first } else { first / value };
            let shown = shown(value);
            match number {
                0 => write!(text, " {shown} |"),
                _ => write!(text, " {shown} ({ratio:.2}×) |"),
            }
            .expect("a String takes every write");
        }
        text.push('\n');
    }
    text
}

/// Three digits that count.
fn shown(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A front door is a name, an address and a process, and nothing less.
    #[test]
    fn doors_are_named() {
        let door: DoorAddress = "nginx=127.0.0.1:8443=77".parse().unwrap();
        assert_eq!((door.name.as_str(), door.address.port(), door.process), ("nginx", 8443, "77".parse().unwrap()));
        for wrong in ["nginx", "nginx=127.0.0.1:8443", "nginx=localhost=77", "nginx=127.0.0.1:8443=x"] {
            assert!(wrong.parse::<DoorAddress>().is_err(), "{wrong}");
        }
    }

    /// Ratios say how many times better, whichever way better is.
    #[test]
    fn ratios_are_of_the_better() {
        let figures = |factor: u32| Figures {
            full: Rate {
                count: 100,
                wall: Duration::from_secs(2) * factor,
                cpu: Duration::from_secs(1),
                ..Rate::default()
            },
            resumed: Rate {
                count: 100,
                wall: Duration::from_secs(1),
                cpu: Duration::from_secs(4) / factor,
                ..Rate::default()
            },
            idle: 1,
            memory_after: Memory { rss: 0, pss: 2048 },
            ..Figures::default()
        };
        let table = table(&Summary::default(), &[("one", figures(1)), ("two", figures(2))]);
        let row = |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        assert_eq!(
            row("| new connections a second, full"),
            "| new connections a second, full handshake | 50.0 | 25.0 (0.50×) |"
        );
        assert!(table.contains("| CPU ms each | 40.0 | 20.0 (2.00×) |"), "{table}");
        assert_eq!(row("| KiB of memory an idle"), "| KiB of memory an idle connection | 2.00 | 2.00 (1.00×) |");
    }
}
