//! What the system says of this process, under the names that Prometheus's own clients use. Read when metrics are; nothing where the
//! system does not say.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::fmt;

/// Clock ticks and pages, in the sizes that Linux has on every machine we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Collects `process_…`.
#[derive(Debug)]
pub(super) struct Process;

#[derive(Debug, Default, PartialEq)]
struct Figures {
    resident_bytes: Option<u64>,
    cpu_seconds: Option<f64>,
    started_at: Option<f64>,
    open_files: Option<u64>,
    most_files: Option<u64>,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let figures = read();
        let mut gauge = |name, help, unit: Option<&Unit>, value: Option<f64>| match value {
            Some(value) => {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
            }
            None => Ok(()),
        };
        let number = |value: Option<u64>| value.map(|value| value as f64);
        gauge("process_resident_memory", "Memory of the process", Some(&Unit::Bytes), number(figures.resident_bytes))?;
        gauge("process_start_time", "When the process began, seconds since the Unix epoch", Some(&Unit::Seconds), figures.started_at)?;
        gauge("process_open_fds", "Files and connections that are open", None, number(figures.open_files))?;
        gauge("process_max_fds", "Files and connections that may be open", None, number(figures.most_files))?;
        let Some(seconds) = figures.cpu_seconds else { return Ok(()) };
        let counter = ConstCounter::new(seconds);
        let help = "Time of processors that the process took";
        counter.encode(encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), counter.metric_type())?)
    }
}

fn read() -> Figures {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (stat, status, system) = (text("/proc/self/stat"), text("/proc/self/status"), text("/proc/stat"));
    let limits = text("/proc/self/limits");
    let open_files = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64);
    Figures { open_files, ..parsed(&stat, &status, &system, &limits) }
}

/// Reads proc(5).
fn parsed(stat: &str, status: &str, system: &str, limits: &str) -> Figures {
    // The name stands in parentheses and may hold any character.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    // Counted from the third field of the manual.
    let ticks = |number: usize| fields.get(number - 3)?.parse::<f64>().ok().map(|ticks| ticks / TICKS_PER_SECOND);
    let line = |text: &str, start: &str| text.lines().find_map(|line| line.strip_prefix(start).map(str::to_string));
    let word = |text: Option<String>| text.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    let booted = word(line(system, "btime ")).map(|seconds| seconds as f64);
    Figures {
        resident_bytes: word(line(status, "VmRSS:")).map(|kilobytes| kilobytes * 1_024),
        cpu_seconds: ticks(14).zip(ticks(15)).map(|(user, kernel)| user + kernel),
        started_at: booted.zip(ticks(22)).map(|(booted, since)| booted + since),
        open_files: None,
        most_files: word(line(limits, "Max open files")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_files_are_read_by_their_manual() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 1200 9000 300 184";
        let status = "Name:\tx\nVmRSS:\t    2048 kB\n";
        let limits =
            "Limit                     Soft Limit           Hard Limit\nMax open files            1024                 4096    files\n";
        let figures = parsed(stat, status, "cpu 1\nbtime 1000\n", limits);
        let expected = Figures {
            resident_bytes: Some(2_097_152),
            cpu_seconds: Some(3.0),
            started_at: Some(1_012.0),
            open_files: None,
            most_files: Some(1_024),
        };
        assert_eq!(figures, expected);
        assert_eq!(parsed("", "", "", ""), Figures::default());
    }
}
