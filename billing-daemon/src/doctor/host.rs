//! The host: files, disk, time zones, and the service that starts the daemon.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use billing_scheduler::{Clock, STOP_GRACE, SystemClock};

use super::{Finding, Verdict};
use crate::host::open_files;

/// The paths of the unit, in systemd's order of precedence.
const UNITS: [&str; 4] = [
    "/etc/systemd/system/billing-daemon.service",
    "/run/systemd/system/billing-daemon.service",
    "/usr/lib/systemd/system/billing-daemon.service",
    "/lib/systemd/system/billing-daemon.service",
];
/// Less free space than this is a failure.
const TOO_LITTLE: u64 = 50 << 20;
/// Less free space than this is a warning.
const LITTLE: u64 = 500 << 20;

/// What the checks of the host work with.
pub(crate) struct HostFacts {
    /// The problems of files with secrets that other users can read.
    pub(crate) exposed: Vec<String>,
    /// The folders of the state and of an SQLite database.
    pub(crate) folders: Vec<PathBuf>,
    /// The folder of the note of the newest batch, if the daemon keeps one in a file and bills.
    pub(crate) state: StateFolder,
    /// The longest time that a stop takes.
    pub(crate) drain_timeout: Duration,
    /// The service's unit, if one is installed.
    pub(crate) unit: Option<(PathBuf, String)>,
    /// The SQLite database, if the daemon uses one.
    pub(crate) file: Option<PathBuf>,
}

/// Where a daemon keeps its note of the newest batch.
#[derive(Clone, Debug)]
pub(crate) enum StateFolder {
    /// It does not bill.
    NotNeeded,
    /// In this folder, according to jobs.toml or the environment.
    Configured(PathBuf),
    /// In the folder of the service, if there is a unit.
    OfService,
}

impl HostFacts {
    /// Returns the path and the text of the installed unit.
    pub(crate) fn installed_unit() -> Option<(PathBuf, String)> {
        let read = |path: &str| Some((PathBuf::from(path), fs::read_to_string(path).ok()?));
        UNITS.into_iter().find_map(read)
    }
}

pub(crate) fn examine(host: &HostFacts) -> Vec<Finding> {
    let exposed = |exposed: &String| Finding { verdict: Verdict::Fail, ..Finding::ok("secrets", exposed) };
    let mut findings: Vec<_> = host.exposed.iter().map(exposed).collect();
    if findings.is_empty() {
        findings.push(Finding::ok("secrets", "no other user can read a file with a password"));
    }
    findings.extend(host.folders.iter().filter_map(|folder| space(folder)));
    if let (Some(file), Some((_, unit))) = (&host.file, &host.unit) {
        findings.extend(owner(file, unit));
    }
    findings.extend(open_files(open_files::limit()));
    findings.extend(state(&host.state, host.unit.as_ref()));
    findings.push(zones());
    findings.extend(unit(host.unit.as_ref(), host.drain_timeout));
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

/// Checks that the user of the service owns the SQLite database, its folder and the files next to it. A command under sudo creates
/// files that belong to root.
#[cfg(unix)]
fn owner(file: &Path, unit: &str) -> Option<Finding> {
    use std::os::unix::fs::MetadataExt as _;
    let users = Users::read()?;
    let service = value_of(unit, "User").unwrap_or("root");
    let uid = users.uid(service)?;
    let name = file.file_name()?.to_str()?;
    let next_to_it =
        ["-wal", "-shm", "-journal"].map(|suffix| file.with_file_name(format!("{name}{suffix}")));
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let paths = [file, folder].into_iter().chain(next_to_it.iter().map(PathBuf::as_path));
    let foreign: Vec<_> = paths
        .filter_map(|path| Some((path.display().to_string(), fs::metadata(path).ok()?.uid())))
        .filter(|(_, owner)| *owner != uid && uid != 0)
        .collect();
    let Some((path, owner)) = foreign.first() else {
        return Some(Finding::ok(
            "database file",
            format!("{} belongs to the user of the service, {service}", file.display()),
        ));
    };
    let all: Vec<_> = foreign.iter().map(|(path, _)| path.as_str()).collect();
    Some(Finding::fail(
        "database file",
        format!("{path} belongs to {}, and the service runs as {service}", users.name(*owner)),
        format!(
            "`chown {service}: {}`, and run `migrate up` as that user: `sudo -u {service}`",
            all.join(" ")
        ),
    ))
}

#[cfg(not(unix))]
fn owner(_: &Path, _: &str) -> Option<Finding> {
    None
}

/// The users in `/etc/passwd`.
#[cfg(unix)]
struct Users(String);

#[cfg(unix)]
impl Users {
    fn read() -> Option<Self> {
        fs::read_to_string("/etc/passwd").ok().map(Self)
    }

    fn all(&self) -> impl Iterator<Item = (&str, u32)> {
        self.0.lines().filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?, fields.nth(1)?.parse().ok()?))
        })
    }

    fn uid(&self, name: &str) -> Option<u32> {
        self.all().find(|(known, _)| *known == name).map(|(_, uid)| uid)
    }

    fn name(&self, uid: u32) -> String {
        let known = self.all().find(|(_, known)| *known == uid);
        known.map_or_else(|| format!("uid {uid}"), |(name, _)| name.to_owned())
    }
}

/// The limit of this process, which the daemon raises to what it needs if the system permits it.
fn open_files(limit: Option<u64>) -> Option<Finding> {
    let limit = limit?;
    let message = format!("a process may open {limit} files, and the daemon needs {}", open_files::NEEDED);
    Some(if limit < open_files::NEEDED {
        let advice = "raise the hard limit: `LimitNOFILE` of the service, or `ulimit -n`";
        Finding::warn("open files", message, advice)
    } else {
        Finding::ok("open files", message)
    })
}

fn space(folder: &Path) -> Option<Finding> {
    let free = free_space(folder)?;
    let message = format!("{} MB free on the disk of {}", free >> 20, folder.display());
    Some(match free {
        0..TOO_LITTLE => Finding::fail("disk", message, "free space, or no transaction can be committed"),
        TOO_LITTLE..LITTLE => Finding::warn("disk", message, "free space soon"),
        _ => Finding::ok("disk", message),
    })
}

/// Checks that a daemon remembers over a restart which batch is the newest.
fn state(state: &StateFolder, unit: Option<&(PathBuf, String)>) -> Option<Finding> {
    const CHECK: &str = "restore detection";
    let folder = match state {
        StateFolder::NotNeeded => return None,
        StateFolder::Configured(folder) => folder,
        StateFolder::OfService => {
            let folder = unit.and_then(|(_, text)| value_of(text, "StateDirectory"));
            return Some(match folder {
                Some(folder) => {
                    Finding::ok(CHECK, format!("the service keeps its note in /var/lib/{folder}"))
                }
                None => Finding::warn(
                    CHECK,
                    "no state folder is configured: a daemon that was restarted does not detect a restored database",
                    "set `state-dir` in [daemon] of jobs.toml to a folder on a persistent disk",
                ),
            });
        }
    };
    let shown = folder.display();
    Some(if folder.is_dir() {
        Finding::ok(CHECK, format!("the note of the newest batch is kept in {shown}"))
    } else {
        Finding::fail(
            CHECK,
            format!("the state folder {shown} is not a folder"),
            "create it, writable for the user of the daemon, or correct `state-dir`",
        )
    })
}

/// Compares the system's rules, which schedules use, with those of this program. Where they differ, one of the two is older.
fn zones() -> Finding {
    use chrono::Offset as _;
    let now = SystemClock.now();
    let Ok(instant) = jiff::Timestamp::from_second(now.timestamp()) else {
        return Finding::warn("time zones", "the clock shows an invalid year", "set the clock");
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
        let message = "this host has no time zone data: the data of the program are used";
        return Finding::warn(
            "time zones",
            message,
            "install tzdata, which is updated when a country changes its rules",
        );
    }
    if missing > 0 {
        let message = format!("the host's data lack {missing} zones that jobs.toml may name");
        return Finding::warn(
            "time zones",
            message,
            "install all of tzdata (`tzdata-legacy` on newer Debian)",
        );
    }
    if differing.is_empty() {
        return Finding::ok("time zones", "the data of the host and of the program agree today");
    }
    let listed = differing.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    let message = format!(
        "in {} zones the data of the host and of the program differ today: {listed}",
        differing.len()
    );
    Finding::warn("time zones", message, "the host's data are used: update tzdata if they are older")
}

/// Returns the value of a unit's key, which the last line sets.
fn value_of<'a>(unit: &'a str, key: &str) -> Option<&'a str> {
    let mut values = unit.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
    values.next_back().map(str::trim)
}

fn unit(unit: Option<&(PathBuf, String)>, drain_timeout: Duration) -> Vec<Finding> {
    let Some((path, text)) = unit else {
        let advice = "run `billing-daemon service install`, or let another supervisor restart the daemon";
        return vec![Finding::warn("service", "no systemd unit is installed", advice)];
    };
    let value = |key: &str| value_of(text, key);
    let path = path.display();
    let mut findings = vec![Finding::ok("service", format!("{path}"))];
    if value("Restart").is_none_or(|restart| restart == "no") {
        findings.push(Finding::warn(
            "restart",
            format!("{path} does not restart a daemon that died"),
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
            "use the unit of this version",
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

    #[test]
    fn unit_is_compared_with_needs_of_daemon() {
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

    #[cfg(unix)]
    #[test]
    fn database_of_another_user_is_a_failure() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("billing.db");
        let users = Users::read().expect("the users are known");
        let own = users.name(crate::host::platform::uid());
        let other = users.all().find(|(name, uid)| *name != own && *uid != 0).expect("there are others").0;
        let verdict = |user: &str| owner(&file, &format!("[Service]\nUser={user}\n"));
        assert_eq!(
            verdict(other).map(|finding| finding.verdict),
            Some(Verdict::Fail),
            "the folder is another user's"
        );
        fs::write(&file, "").expect("a folder of ours");
        assert_eq!(verdict(&own).map(|finding| finding.verdict), Some(Verdict::Ok));
        let finding = verdict(other).expect("it is examined");
        assert!(
            finding
                .message
                .ends_with(&format!("billing.db belongs to {own}, and the service runs as {other}"))
        );
        assert!(finding.advice.is_some_and(|advice| advice.contains(&format!("chown {other}: /"))));
        assert_eq!(verdict("no-such-user"), None);
    }

    #[test]
    fn low_limit_of_open_files_warns() {
        for (limit, verdict) in [
            (None, None),
            (Some(1024), Some(Verdict::Ok)),
            (Some(256), Some(Verdict::Ok)),
            (Some(64), Some(Verdict::Warn)),
        ] {
            assert_eq!(open_files(limit).map(|finding| finding.verdict), verdict, "{limit:?}");
        }
    }

    #[test]
    fn missing_state_folder_is_reported() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let with_state = (PathBuf::from("/unit"), "[Service]\nStateDirectory=billing-daemon\n".to_owned());
        let without = (PathBuf::from("/unit"), "[Service]\n".to_owned());
        for (of, unit, expected) in [
            (StateFolder::NotNeeded, None, None),
            (StateFolder::OfService, None, Some(Verdict::Warn)),
            (StateFolder::OfService, Some(&without), Some(Verdict::Warn)),
            (StateFolder::OfService, Some(&with_state), Some(Verdict::Ok)),
            (StateFolder::Configured(folder.path().to_owned()), None, Some(Verdict::Ok)),
            (StateFolder::Configured(folder.path().join("none")), None, Some(Verdict::Fail)),
        ] {
            let found = state(&of, unit).map(|finding| finding.verdict);
            assert_eq!(found, expected, "{of:?} {unit:?}");
        }
    }

    #[test]
    fn exposed_secret_is_a_failure() {
        let host = HostFacts {
            exposed: vec!["/etc/x holds a secret".to_owned()],
            folders: vec![std::env::temp_dir()],
            state: StateFolder::NotNeeded,
            drain_timeout: Duration::from_secs(30),
            unit: None,
            file: None,
        };
        let findings = examine(&host);
        assert_eq!((findings[0].check.as_str(), findings[0].verdict), ("secrets", Verdict::Fail));
        assert!(findings.iter().any(|finding| finding.check == "disk"));
    }
}
