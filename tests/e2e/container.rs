//! The container image: built from its Containerfile with the program that the tests built, and tried. `scripts/try-image.sh` describes
//! how; it needs no registry. `scripts/check-container.sh` checks the files for Compose and Kubernetes.

use std::{path::Path, process::Command, time::Duration};

use billing_daemon::config::DaemonSettings;
use billing_scheduler::{STOP_GRACE, duration};
use billing_test_support::skipped;

use crate::daemon::program;

const COMPOSE: &str = include_str!("../../packaging/compose/compose.yml");
const GUIDE: &str = include_str!("../../docs/operate/containers.md");
const UNIT: &str = include_str!("../../systemd/billing-daemon.service");

#[test]
fn image_bills_and_reports_health() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/try-image.sh");
    let tried =
        Command::new(script).arg(env!("CARGO_BIN_EXE_e2e-daemon")).output().expect("bash is installed");
    let output = [tried.stdout, tried.stderr].concat();
    let output = String::from_utf8_lossy(&output);
    assert!(tried.status.success(), "{output}");
    for line in output.lines() {
        if let Some(reason) = line.strip_prefix("SKIPPED: ") {
            skipped(reason);
        }
    }
}

/// A runtime that kills the daemon earlier interrupts what it would have completed.
#[test]
fn stop_graces_exceed_default_drain() {
    // The daemon announces 20 s for what follows the runs.
    let needed = DaemonSettings::default().drain_timeout + STOP_GRACE + Duration::from_secs(20);
    for (file, before, unit) in [
        (COMPOSE, "stop_grace_period: ", ""),
        (GUIDE, "terminationGracePeriodSeconds: ", "s"),
        (GUIDE, "--stop-timeout ", "s"),
        (UNIT, "\nTimeoutStopSec=", "s"),
    ] {
        let (_, rest) = file.split_once(before).unwrap_or_else(|| panic!("`{before}` is missing"));
        let number = rest.split_whitespace().next().expect("a value");
        let grace = duration::parse(&format!("{number}{unit}")).expect("a duration");
        assert!(grace >= needed, "{before}{number} is shorter than {needed:?}");
    }
}

#[tokio::test]
async fn compose_configuration_is_valid() {
    let jobs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/compose/jobs.toml");
    let url = "postgres://billing:not-a-secret@postgres/panel";
    assert!(COMPOSE.contains(url));
    let program = program().env("DATABASE_URL", url).env("METRICS_TOKEN", "token-of-the-demonstration");
    let checked = program.run(&format!("check --config {jobs}")).await;
    assert!(!checked.expect_code(0).text().contains("warning"));
}
