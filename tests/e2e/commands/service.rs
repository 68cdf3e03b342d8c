//! The daemon as a service of each supported system, as far as that can be tested without one.

use billing_test_support::{Ended, Program, skipped};

use crate::daemon::program;

const UNIT: &str = include_str!("../../../systemd/billing-daemon.service");

async fn shown(arguments: &str) -> Ended {
    program().env("HOME", "/home/ada").run(&format!("service {arguments} --dry-run")).await.expect_code(0)
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}").trim_end().to_owned() + "\n").collect()
}

#[tokio::test]
async fn install_dry_run_prints_shipped_unit() {
    let install = shown("install --system systemd").await;
    let out = install.out.join("\n");
    let program = env!("CARGO_BIN_EXE_e2e-daemon");
    let unit = UNIT.replace("ExecStart=/usr/bin/billing-daemon", &format!("ExecStart={program}"));
    let expected = format!("write /etc/systemd/system/billing-daemon.service:\n{}", indented(&unit));
    assert!(out.starts_with(&expected), "{out}");
    for line in [
        "run systemd-sysusers /etc/sysusers.d/billing-daemon.conf",
        "run systemd-tmpfiles --create /etc/tmpfiles.d/billing-daemon.conf",
        "run systemctl daemon-reload",
        "run systemctl enable billing-daemon.service",
    ] {
        assert!(install.out.iter().any(|output| output == line), "{line} in\n{out}");
    }
    assert!(!out.contains("systemctl start"), "nothing is started before it is configured");
    assert!(install.err.join("\n").contains("write the database URL to /etc/billing-daemon/database-url"));
    assert!(!std::path::Path::new("/etc/systemd/system/billing-daemon.service").exists());

    let of_user = shown("install --user --system systemd").await.out;
    assert_eq!(of_user[0], "write /home/ada/.config/systemd/user/billing-daemon.service:");
    assert!(of_user.iter().any(|line| line == "run systemctl --user enable billing-daemon.service"));
}

#[tokio::test]
async fn foreign_dry_run_prints_its_steps() {
    for (arguments, lines) in [
        (
            "install --system launchd",
            &[
                "write /Library/LaunchDaemons/billing-daemon.plist:",
                "run launchctl disable system/billing-daemon",
            ][..],
        ),
        ("start --system launchd", &["run launchctl enable system/billing-daemon"]),
        ("uninstall --system launchd", &["remove /Library/LaunchDaemons/billing-daemon.plist"]),
        ("install --user --system launchd", &["write /home/ada/Library/LaunchAgents/billing-daemon.plist:"]),
        (
            "install --system windows",
            &["run sc.exe failureflag billing-daemon 1", r"create the folder C:\ProgramData\billing-daemon"],
        ),
        ("stop --system windows", &["run sc.exe stop billing-daemon"]),
        ("status --system windows", &["run sc.exe query billing-daemon"]),
        ("uninstall --system windows", &["run sc.exe delete billing-daemon"]),
        ("status --system systemd", &["run systemctl --no-pager status billing-daemon.service"]),
        ("stop --user --system systemd", &["run systemctl --user stop billing-daemon.service"]),
    ] {
        let output = shown(arguments).await;
        for line in lines {
            assert!(
                output.out.iter().any(|output| output == line),
                "{arguments}: {line} in\n{}",
                output.text()
            );
        }
    }
}

#[tokio::test]
async fn install_prints_log_location() {
    let windows = r"log: C:\ProgramData\billing-daemon\logs\billing-daemon.log";
    for (arguments, expected) in [
        ("install --system windows", Some(windows)),
        ("status --system windows", Some(windows)),
        ("start --user --system systemd", Some("log: journalctl --user --unit billing-daemon")),
        ("stop --system windows", None),
        ("uninstall --system windows", None),
    ] {
        let output = shown(arguments).await;
        let log = output.err.iter().find(|line| line.starts_with("log: ")).map(String::as_str);
        assert_eq!(log, expected, "{arguments}: {}", output.text());
    }
}

#[tokio::test]
async fn foreign_system_plan_is_never_executed() {
    let output = program().run("service install --system windows").await.expect_code(64);
    assert!(output.text().contains("--dry-run"), "{}", output.text());
}

#[tokio::test]
async fn failed_install_prints_alternative() {
    if std::path::Path::new("/run/systemd/system").exists() {
        skipped("systemd runs here: the output without systemd is not checked");
        return;
    }
    let program: Program = program().env("HOME", "/home/ada");
    let output = program.run("service start --user").await.expect_code(78);
    assert_eq!(
        output.err,
        ["error: systemd does not run here: run `billing-daemon run` under the supervisor of this host"]
    );
    assert!(output.out.is_empty(), "{}", output.text());
    let homeless = crate::daemon::program().run("service start --user").await.expect_code(78);
    assert!(homeless.text().contains("HOME is not set"), "{}", homeless.text());
}
