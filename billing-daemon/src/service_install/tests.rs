use super::*;

fn host(system: System) -> HostFacts {
    HostFacts {
        system,
        program: system.usual_program(),
        user: None,
        is_privileged: true,
        is_running: true,
        packaged: None,
        original: None,
    }
}

fn ada(system: System) -> HostFacts {
    let home = PathBuf::from("/home/ada");
    let user = User { config: home.join(".config"), home, uid: 1000 };
    HostFacts { user: Some(user), is_privileged: false, ..host(system) }
}

fn written(plan: &InstallPlan, at: &str) -> String {
    let texts: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            InstallStep::Write { path, text } if path == Path::new(at) => Some(text.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(texts.len(), 1, "{at} is written once by {:?}", plan.steps);
    texts.concat()
}

fn shown(plan: &InstallPlan) -> Vec<String> {
    plan.steps.iter().map(InstallStep::to_string).collect()
}

#[test]
fn installed_units_are_the_shipped_ones() {
    let plan = plan(ServiceAction::Install, &host(System::Systemd));
    let unit = include_str!("../../shipped/billing-daemon.service");
    let template = include_str!("../../shipped/billing-daemon@.service");
    assert_eq!(written(&plan, "/etc/systemd/system/billing-daemon.service"), unit);
    assert_eq!(written(&plan, "/etc/systemd/system/billing-daemon@.service"), template);
    assert!(plan.obstacles.is_empty(), "{:?}", plan.obstacles);
    assert_eq!(
        shown(&plan)[4..],
        [
            "run systemd-sysusers /etc/sysusers.d/billing-daemon.conf",
            "run systemd-tmpfiles --create /etc/tmpfiles.d/billing-daemon.conf",
            &format!("write /etc/billing-daemon/jobs.toml ({} lines) unless it exists", JOBS.lines().count()),
            "run systemctl daemon-reload",
            "run systemctl enable billing-daemon.service",
        ]
    );
}

#[test]
fn unit_runs_the_installing_program() {
    for user in [false, true] {
        let base = if user { ada(System::Systemd) } else { host(System::Systemd) };
        let elsewhere = HostFacts { program: PathBuf::from("/usr/local/bin/billing-daemon"), ..base };
        let at = if user { "/home/ada/.config/systemd/user" } else { "/etc/systemd/system" };
        let unit =
            written(&plan(ServiceAction::Install, &elsewhere), &format!("{at}/billing-daemon.service"));
        assert!(unit.contains("\nExecStart=/usr/local/bin/billing-daemon run --config "), "{unit}");
    }
}

#[test]
fn unit_and_template_differ_in_paths() {
    let directives = |unit: &str| {
        let lines = unit.lines().filter(|line| !line.starts_with(['#', '[']) && line.contains('='));
        let lines = lines.map(|line| {
            ["/%i", "-%i", " of %i"].iter().fold(line.to_owned(), |line, of| line.replace(of, ""))
        });
        lines.collect::<Vec<_>>()
    };
    let unit = directives(include_str!("../../shipped/billing-daemon.service"));
    assert_eq!(directives(include_str!("../../shipped/billing-daemon@.service")), unit);
    assert!(unit.len() > 40, "{unit:?}");
}

/// journalctl does not resolve aliases, so the name of the original is a unit.
#[test]
fn unit_under_original_name_runs_same_daemon() {
    let unit = include_str!("../../shipped/billing-daemon.service");
    let original = include_str!("../../shipped/containerstacks-billing.service");
    let lines = |unit: &'static str| unit.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let added: Vec<_> = lines(original).filter(|line| lines(unit).all(|known| known != *line)).collect();
    assert_eq!(
        added,
        [
            "Description=Hourly billing of virtual machines (billing-daemon)",
            "Conflicts=billing-daemon.service",
            "After=network-online.target postgresql.service time-sync.target billing-daemon.service",
        ]
    );
    let removed = lines(unit).filter(|line| lines(original).all(|known| known != *line));
    assert_eq!(removed.count(), 2, "of these, description and order");
    assert!(!unit.contains("Alias="));
}

#[test]
fn original_unit_of_another_biller_is_refused() {
    let original = |exec: &str, is_enabled| {
        let path = PathBuf::from("/etc/systemd/system/containerstacks-billing.service");
        let text = format!("[Service]\nExecStart=/bin/false\nExecStart={exec}\n");
        HostFacts {
            original: Some(OriginalUnit { path, text, is_enabled }),
            program: PathBuf::from("/opt/our billing/daemon"),
            ..host(System::Systemd)
        }
    };
    let theirs = "runs another biller, and two must not be enabled together: run `systemctl disable --now";
    for (exec, is_enabled, action, expected) in [
        ("/usr/bin/node /opt/billing/index.js", false, ServiceAction::Install, theirs),
        ("/usr/bin/node /opt/billing/index.js", true, ServiceAction::Start, theirs),
        ("-/usr/bin/node /usr/bin/billing-daemon", true, ServiceAction::Install, theirs),
        ("/usr/bin/node index.js", true, ServiceAction::Stop, ""),
        ("/usr/bin/node index.js", true, ServiceAction::Uninstall, ""),
        ("/usr/local/bin/billing-daemon run", false, ServiceAction::Install, ""),
        (
            "\"/opt/our billing/daemon\" run",
            true,
            ServiceAction::Install,
            "runs this daemon already: keep it",
        ),
        ("!/usr/bin/billing-daemon run", true, ServiceAction::Start, ""),
    ] {
        let obstacles = plan(action, &original(exec, is_enabled)).obstacles.join("; ");
        assert!(
            obstacles.contains(expected) && expected.is_empty() == obstacles.is_empty(),
            "{exec} {action:?}: {obstacles}"
        );
    }
}

/// systemd removes the whole runtime folder when its unit stops.
#[test]
fn runtime_folders_of_units_are_not_nested() {
    let folder = |unit: &'static str| {
        let folder =
            unit.lines().find_map(|line| line.strip_prefix("RuntimeDirectory=")).expect("it has one");
        Path::new(folder)
    };
    let one = folder(include_str!("../../shipped/billing-daemon.service"));
    let instance = folder(include_str!("../../shipped/billing-daemon@.service"));
    assert!(!instance.starts_with(one), "{} in {}", instance.display(), one.display());
}

#[test]
fn uninstall_stops_every_instance() {
    let removed = shown(&plan(ServiceAction::Uninstall, &host(System::Systemd)));
    let place = |step: &str| removed.iter().position(|shown| shown == step);
    let stopped = place("run systemctl stop billing-daemon@*.service");
    let disabled = place("run systemctl disable billing-daemon@.service");
    let gone = place("remove /etc/systemd/system/billing-daemon@.service");
    assert!(stopped.is_some() && stopped < disabled && disabled < gone, "{removed:?}");
}

#[test]
fn macos_user_has_one_private_folder() {
    let folders =
        plan(ServiceAction::Install, &ada(System::Launchd)).steps.into_iter().filter_map(|step| match step {
            InstallStep::Folder { path, private } => Some((path, private)),
            _ => None,
        });
    let expected = PathBuf::from("/home/ada/Library/Application Support/billing-daemon");
    assert_eq!(folders.collect::<Vec<_>>(), [(expected, true)]);
}

#[test]
fn refused_plan_names_obstacle_and_help() {
    let usual = host(System::Systemd);
    let unprivileged = HostFacts { is_privileged: false, ..usual.clone() };
    let in_home = HostFacts { program: PathBuf::from("/home/ada/billing-daemon"), ..usual.clone() };
    let elsewhere = HostFacts { is_running: false, ..usual.clone() };
    for (action, host, expected) in [
        (ServiceAction::Install, &usual, ""),
        (ServiceAction::Install, &unprivileged, "run it with sudo, or with --user"),
        (ServiceAction::Start, &unprivileged, "run it with sudo, or with --user"),
        (ServiceAction::Status, &unprivileged, ""),
        (
            ServiceAction::Install,
            &in_home,
            "`install -m 755 /home/ada/billing-daemon /usr/local/bin/billing-daemon`",
        ),
        (ServiceAction::Uninstall, &in_home, ""),
        (ServiceAction::Install, &elsewhere, "systemd does not run here"),
        (ServiceAction::Install, &ada(System::Systemd), ""),
        (ServiceAction::Install, &ada(System::Windows), "run it without --user, as Administrator"),
        (
            ServiceAction::Start,
            &HostFacts { is_privileged: false, ..self::host(System::Windows) },
            "run it as Administrator",
        ),
    ] {
        let obstacles = plan(action, host).obstacles.join("; ");
        assert!(
            obstacles.contains(expected) && expected.is_empty() == obstacles.is_empty(),
            "{action:?}: {obstacles}"
        );
    }
}

#[test]
fn package_units_are_only_enabled_and_disabled() {
    let packaged = HostFacts {
        packaged: Some(PathBuf::from("/lib/systemd/system/billing-daemon.service")),
        ..host(System::Systemd)
    };
    assert_eq!(
        shown(&plan(ServiceAction::Install, &packaged)),
        ["run systemctl enable billing-daemon.service"]
    );
    let removed = plan(ServiceAction::Uninstall, &packaged);
    let switched_off = [
        "run systemctl disable --now billing-daemon.service",
        "run systemctl stop billing-daemon@*.service",
        "run systemctl disable billing-daemon@.service",
    ];
    assert_eq!(shown(&removed), switched_off);
    assert!(removed.next[0].contains("apt-get remove"), "{:?}", removed.next);
}

/// The operator's files stay.
#[test]
fn uninstall_removes_exactly_installed_files() {
    for host in [
        host(System::Systemd),
        host(System::Launchd),
        host(System::Windows),
        ada(System::Systemd),
        ada(System::Launchd),
    ] {
        let wrote = plan(ServiceAction::Install, &host).steps.into_iter().filter_map(|step| match step {
            InstallStep::Write { path, .. } => Some(path),
            _ => None,
        });
        let removed = plan(ServiceAction::Uninstall, &host).steps.into_iter().filter_map(|step| match step {
            InstallStep::Remove { path } => Some(path),
            _ => None,
        });
        assert_eq!(wrote.collect::<Vec<_>>(), removed.collect::<Vec<_>>(), "{host:?}");
    }
}

#[test]
fn launchd_list_starts_nothing_before_start() {
    let strange = HostFacts { program: PathBuf::from("/opt/A&B/billing-daemon"), ..host(System::Launchd) };
    let plan = plan(ServiceAction::Install, &strange);
    let list = written(&plan, "/Library/LaunchDaemons/billing-daemon.plist");
    for part in [
        "<array><string>/opt/A&amp;B/billing-daemon</string><string>run</string><string>--config</string>",
        "<string>/usr/local/etc/billing-daemon/jobs.toml</string></array>",
        "<key>DATABASE_URL_FILE</key><string>/usr/local/etc/billing-daemon/database-url</string>",
        "<key>UserName</key>\n    <string>daemon</string>",
    ] {
        assert!(list.contains(part), "{part} in {list}");
    }
    assert_eq!(shown(&plan).last().map(String::as_str), Some("run launchctl disable system/billing-daemon"));
    let start = super::plan(ServiceAction::Start, &ada(System::Launchd));
    assert_eq!(
        shown(&start),
        [
            "run launchctl enable gui/1000/billing-daemon",
            "run launchctl bootstrap gui/1000 /home/ada/Library/LaunchAgents/billing-daemon.plist",
        ]
    );
}

#[test]
fn windows_service_has_a_separate_account() {
    let plan = plan(ServiceAction::Install, &host(System::Windows));
    let shown = shown(&plan).join("\n");
    for part in [
        r#"binPath= '"C:\Program Files\billing-daemon\billing-daemon.exe" run --as-service --config "C:\ProgramData\billing-daemon\jobs.toml" --log-file "C:\ProgramData\billing-daemon\logs\billing-daemon.log"'"#,
        r"create the folder C:\ProgramData\billing-daemon\logs",
        r"run icacls.exe C:\ProgramData\billing-daemon\logs /grant 'NT SERVICE\billing-daemon:(OI)(CI)M'",
        r"obj= 'NT SERVICE\billing-daemon'",
        r"run sc.exe failureflag billing-daemon 1",
        r"run icacls.exe C:\ProgramData\billing-daemon\database-url /inheritance:r",
    ] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
}

#[test]
fn shown_log_is_where_service_writes() {
    for (host, expected) in [
        (host(System::Systemd), "journalctl --unit billing-daemon"),
        (ada(System::Systemd), "journalctl --user --unit billing-daemon"),
        (host(System::Launchd), "/usr/local/var/lib/billing-daemon/billing-daemon.log"),
        (ada(System::Launchd), "/home/ada/Library/Logs/billing-daemon.log"),
        (host(System::Windows), r"C:\ProgramData\billing-daemon\logs\billing-daemon.log"),
    ] {
        assert_eq!(log(&host), expected);
        let steps = plan(ServiceAction::Install, &host).steps.into_iter();
        let texts = steps.map(|step| match step {
            InstallStep::Write { text, .. } => text,
            other => other.to_string(),
        });
        let written = texts.collect::<Vec<_>>().join("\n");
        assert!(written.contains(expected) || host.system == System::Systemd, "{expected} in {written}");
    }
}
