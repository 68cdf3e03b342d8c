//! The machine: files, disk, time zones, and the service that starts the daemon.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use billing_scheduler::{Clock, STOP_GRACE, SystemClock};

use super::Finding;

/// Where systemd looks for our unit.
const UNITS: [&str; 4] = [
    "/etc/systemd/system/billing-daemon.service",
    "/run/systemd/system/billing-daemon.service",
    "/usr/lib/systemd/system/billing-daemon.service",
    "/lib/systemd/system/billing-daemon.service",
];
/// Less free space than this cannot last.
const TOO_LITTLE: u64 = 50 << 20;
/// Less than this will not last long.
const LITTLE: u64 = 500 << 20;

/// What is known of the machine before anything is looked at.
pub(crate) struct Machine {
    /// Why files with secrets are not safe.
    pub(crate) exposed: Vec<String>,
    /// Where state, or an SQLite database, is kept.
    pub(crate) folders: Vec<PathBuf>,
    /// How long a stop may take.
    pub(crate) drain_timeout: Duration,
    /// The service's unit, if one is installed.
    pub(crate) unit: Option<(PathBuf, String)>,
}

impl Machine {
    /// The unit that is installed on this machine.
    pub(crate) fn installed_unit() -> Option<(PathBuf, String)> {
        let read = |path: &str| Some((PathBuf::from(path), fs::read_to_string(path).ok()?));
        UNITS.into_iter().find_map(read)
    }
}

/// Everything about the machine.
pub(crate) fn examine(machine: &Machine) -> Vec<Finding> {
    let mut findings: Vec<_> = machine
        .exposed
        .iter()
        .map(|exposed| Finding::fail("secrets", exposed, "the message says what to do"))
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok("secrets", "no file with a password is readable by others"));
    }
    findings.extend(machine.folders.iter().filter_map(|folder| space(folder)));
    findings.push(zones());
    findings.extend(unit(machine.unit.as_ref(), machine.drain_timeout));
    findings
}

#[cfg(unix)]
fn free_space(folder: &Path) -> Option<u64> {
    let statistics = rustix::fs::statvfs(folder).ok()?;
    Some(statistics.f_bavail.saturating_mul(statistics.f_frsize))
}

#[cfg(not(unix))]
fn free_space(_: &Path) -> Option<u64> {
    None
}

fn space(folder: &Path) -> Option<Finding> {
    let free = free_space(folder)?;
    let message = format!("{} MB free where {} is", free >> 20, folder.display());
    Some(match free {
        0..TOO_LITTLE => Finding::fail("disk", message, "free some, or nothing can be committed"),
        TOO_LITTLE..LITTLE => Finding::warn("disk", message, "free some soon"),
        _ => Finding::ok("disk", message),
    })
}

/// Jobs are computed by the system's rules; the names are those of the program's own list. Where the two disagree, the program's
/// list is older, or the system's is.
fn zones() -> Finding {
    use chrono::Offset as _;
    let now = SystemClock.now();
    let Ok(instant) = jiff::Timestamp::from_second(now.timestamp()) else {
        return Finding::warn("time zones", "the clock shows a year that no calendar has", "set the clock");
    };
    let database = jiff::tz::db();
    let (mut differing, mut missing) = (Vec::new(), 0);
    for zone in chrono_tz::TZ_VARIANTS {
        let Ok(system) = database.get(zone.name()) else {
            missing += 1;
            continue;
        };
        let bundled = now.with_timezone(&zone).offset().fix().local_minus_utc();
        if system.to_offset(instant).seconds() != bundled {
            differing.push(zone.name());
        }
    }
    let has_system = ["/usr/share/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo"]
        .iter()
        .any(|folder| Path::new(folder).is_dir())
        || std::env::var_os("TZDIR").is_some();
    if !has_system {
        let message = "this system has no time-zone data, so those of the program are used";
        return Finding::warn(
            "time zones",
            message,
            "install tzdata, which is updated when a country changes its rules",
        );
    }
    if missing > 0 {
        let message = format!("the system's data lack {missing} zones that jobs.toml may name");
        return Finding::warn(
            "time zones",
            message,
            "install all of tzdata (`tzdata-legacy` on newer Debian)",
        );
    }
    if differing.is_empty() {
        return Finding::ok("time zones", "the system's data and ours agree today");
    }
    let listed = differing.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    let message = format!("in {} zones the system's data and ours disagree today: {listed}", differing.len());
    Finding::warn("time zones", message, "the system's are used: see that they are the newer ones")
}

fn unit(unit: Option<&(PathBuf, String)>, drain_timeout: Duration) -> Vec<Finding> {
    let Some((path, text)) = unit else {
        let advice =
            "`billing-daemon service install`, or see to it yourself that the daemon is started again";
        return vec![Finding::warn("service", "no systemd unit is installed", advice)];
    };
    let value = |key: &str| {
        let mut values = text.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        values.next_back().map(str::trim)
    };
    let path = path.display();
    let mut findings = vec![Finding::ok("service", format!("{path}"))];
    if value("Restart").is_none_or(|restart| restart == "no") {
        findings.push(Finding::warn(
            "restart",
            format!("{path} does not start a daemon again that died"),
            "add Restart=on-failure",
        ));
    }
    findings.push(match value("WatchdogSec") {
        Some(watchdog) => {
            Finding::ok("watchdog", format!("systemd restarts a daemon that hangs for {watchdog}"))
        }
        None => Finding::warn(
            "watchdog",
            format!("{path} has no WatchdogSec, so a daemon that hangs is not restarted"),
            "take the unit that ships with this version",
        ),
    });
    let stop = value("TimeoutStopSec").unwrap_or("90");
    let seconds = stop
        .trim_end_matches('s')
        .parse()
        .map(Duration::from_secs)
        .or_else(|_| humantime::parse_duration(stop));
    let needed = drain_timeout + STOP_GRACE;
    if let Some(stop) = seconds.ok().filter(|stop| *stop <= needed) {
        let (stop, needed) = (humantime::format_duration(stop), humantime::format_duration(needed));
        findings.push(Finding::warn(
            "stopping",
            format!("systemd kills the daemon after {stop}, and a stop may take {needed}"),
            format!("set TimeoutStopSec to more than {needed}, or shorten `drain-timeout`"),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_unit_is_held_against_what_the_daemon_needs() {
        let drain = Duration::from_secs(30);
        let worst = |text: &str| {
            let unit = (PathBuf::from("/unit"), text.to_owned());
            let findings = unit_findings(&unit, drain);
            let wrong = findings.into_iter().filter(|finding| finding.verdict != Verdict::Ok);
            wrong.map(|finding| finding.check).collect::<Vec<_>>()
        };
        let whole = "[Service]\nRestart=on-failure\nWatchdogSec=60\nTimeoutStopSec=65\n";
        assert!(worst(whole).is_empty());
        assert_eq!(worst(&whole.replace("WatchdogSec=60\n", "")), ["watchdog"]);
        assert_eq!(worst(&whole.replace("StopSec=65", "StopSec=60s")), ["stopping"]);
        assert_eq!(worst(&whole.replace("Restart=on-failure", "Restart=no")), ["restart"]);
        assert_eq!(unit(None, drain)[0].verdict, Verdict::Warn);
    }

    fn unit_findings(of: &(PathBuf, String), drain: Duration) -> Vec<Finding> {
        unit(Some(of), drain)
    }

    #[test]
    fn a_secret_that_others_may_read_is_a_failure() {
        let machine = Machine {
            exposed: vec!["/etc/x holds a secret".to_owned()],
            folders: vec![std::env::temp_dir()],
            drain_timeout: Duration::from_secs(30),
            unit: None,
        };
        let findings = examine(&machine);
        assert_eq!((findings[0].check.as_str(), findings[0].verdict), ("secrets", Verdict::Fail));
        assert!(findings.iter().any(|finding| finding.check == "disk"));
    }
}
