use super::*;

fn machine(system: System) -> Machine {
    Machine {
        system,
        program: system.usual_program(),
        user: None,
        is_privileged: true,
        is_running: true,
        packaged: None,
        original: None,
    }
}

fn ada(system: System) -> Machine {
    let home = PathBuf::from("/home/ada");
    let user = User { config: home.join(".config"), home, uid: 1000 };
    Machine { user: Some(user), is_privileged: false, ..machine(system) }
}

fn written(plan: &Plan, at: &str) -> String {
    let texts: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Write { path, text } if path == Path::new(at) => Some(text.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(texts.len(), 1, "{at} is written once by {:?}", plan.steps);
    texts.concat()
}

fn shown(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(Step::to_string).collect()
}

#[test]
fn the_unit_that_is_written_is_the_one_that_ships() {
    let plan = plan(Action::Install, &machine(System::Systemd));
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
            &format!(
                "write /etc/billing-daemon/jobs.toml, the {} lines that ship, unless it is there",
                JOBS.lines().count()
            ),
            "run systemctl daemon-reload",
            "run systemctl enable billing-daemon.service",
        ]
    );
}

#[test]
fn a_program_somewhere_else_is_what_the_unit_runs() {
    for user in [false, true] {
        let base = if user { ada(System::Systemd) } else { machine(System::Systemd) };
        let elsewhere = Machine { program: PathBuf::from("/usr/local/bin/billing-daemon"), ..base };
        let at = if user { "/home/ada/.config/systemd/user" } else { "/etc/systemd/system" };
        let unit = written(&plan(Action::Install, &elsewhere), &format!("{at}/billing-daemon.service"));
        assert!(unit.contains("\nExecStart=/usr/local/bin/billing-daemon run --config "), "{unit}");
    }
}

#[test]
fn both_units_of_a_machine_differ_in_their_places_alone() {
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
        Machine {
            original: Some(OriginalUnit { path, text, is_enabled }),
            program: PathBuf::from("/opt/our billing/daemon"),
            ..machine(System::Systemd)
        }
    };
    let theirs = "runs another biller, and two must not be enabled together: `systemctl disable --now";
    for (exec, is_enabled, action, told) in [
        ("/usr/bin/node /opt/billing/index.js", false, Action::Install, theirs),
        ("/usr/bin/node /opt/billing/index.js", true, Action::Start, theirs),
        ("-/usr/bin/node /usr/bin/billing-daemon", true, Action::Install, theirs),
        ("/usr/bin/node index.js", true, Action::Stop, ""),
        ("/usr/bin/node index.js", true, Action::Uninstall, ""),
        ("/usr/local/bin/billing-daemon run", false, Action::Install, ""),
        ("\"/opt/our billing/daemon\" run", true, Action::Install, "runs this daemon already: keep it"),
        ("!/usr/bin/billing-daemon run", true, Action::Start, ""),
    ] {
        let obstacles = plan(action, &original(exec, is_enabled)).obstacles.join("; ");
        assert!(
            obstacles.contains(told) && told.is_empty() == obstacles.is_empty(),
            "{exec} {action:?}: {obstacles}"
        );
    }
}

/// systemd removes a runtime folder whole when its unit stops.
#[test]
fn no_units_runtime_folder_lies_inside_of_anothers() {
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
fn removing_the_service_leaves_none_of_several_panels_running_or_enabled() {
    let removed = shown(&plan(Action::Uninstall, &machine(System::Systemd)));
    let place = |step: &str| removed.iter().position(|shown| shown == step);
    let stopped = place("run systemctl stop billing-daemon@*.service");
    let disabled = place("run systemctl disable billing-daemon@.service");
    let gone = place("remove /etc/systemd/system/billing-daemon@.service");
    assert!(stopped.is_some() && stopped < disabled && disabled < gone, "{removed:?}");
}

#[test]
fn a_user_of_macos_has_one_folder_and_it_is_private() {
    let folders =
        plan(Action::Install, &ada(System::Launchd)).steps.into_iter().filter_map(|step| match step {
            Step::Folder { path, private } => Some((path, private)),
            _ => None,
        });
    let expected = PathBuf::from("/home/ada/Library/Application Support/billing-daemon");
    assert_eq!(folders.collect::<Vec<_>>(), [(expected, true)]);
}

#[test]
fn what_stands_in_the_way_is_told_with_what_to_do() {
    let usual = machine(System::Systemd);
    let anybody = Machine { is_privileged: false, ..usual.clone() };
    let in_home = Machine { program: PathBuf::from("/home/ada/billing-daemon"), ..usual.clone() };
    let elsewhere = Machine { is_running: false, ..usual.clone() };
    for (action, machine, told) in [
        (Action::Install, &usual, ""),
        (Action::Install, &anybody, "run it again with sudo, or with --user"),
        (Action::Start, &anybody, "run it again with sudo, or with --user"),
        (Action::Status, &anybody, ""),
        (
            Action::Install,
            &in_home,
            "`install -m 755 /home/ada/billing-daemon /usr/local/bin/billing-daemon`",
        ),
        (Action::Uninstall, &in_home, ""),
        (Action::Install, &elsewhere, "systemd does not run here"),
        (Action::Install, &ada(System::Systemd), ""),
        (Action::Install, &ada(System::Windows), "run it again without --user, as Administrator"),
        (
            Action::Start,
            &Machine { is_privileged: false, ..self::machine(System::Windows) },
            "run it again as Administrator",
        ),
    ] {
        let obstacles = plan(action, machine).obstacles.join("; ");
        assert!(
            obstacles.contains(told) && told.is_empty() == obstacles.is_empty(),
            "{action:?}: {obstacles}"
        );
    }
}

#[test]
fn units_of_a_package_are_switched_on_and_off_and_nothing_else() {
    let packaged = Machine {
        packaged: Some(PathBuf::from("/lib/systemd/system/billing-daemon.service")),
        ..machine(System::Systemd)
    };
    assert_eq!(shown(&plan(Action::Install, &packaged)), ["run systemctl enable billing-daemon.service"]);
    let removed = plan(Action::Uninstall, &packaged);
    let switched_off = [
        "run systemctl disable --now billing-daemon.service",
        "run systemctl stop billing-daemon@*.service",
        "run systemctl disable billing-daemon@.service",
    ];
    assert_eq!(shown(&removed), switched_off);
    assert!(removed.next[0].contains("apt-get remove"), "{:?}", removed.next);
}

/// Whatever installing writes as ours, removing takes away, and nothing of the operator's.
#[test]
fn removing_takes_away_what_installing_wrote_and_leaves_what_is_the_operators() {
    for machine in [
        machine(System::Systemd),
        machine(System::Launchd),
        machine(System::Windows),
        ada(System::Systemd),
        ada(System::Launchd),
    ] {
        let wrote = plan(Action::Install, &machine).steps.into_iter().filter_map(|step| match step {
            Step::Write { path, .. } => Some(path),
            _ => None,
        });
        let removed = plan(Action::Uninstall, &machine).steps.into_iter().filter_map(|step| match step {
            Step::Remove { path } => Some(path),
            _ => None,
        });
        assert_eq!(wrote.collect::<Vec<_>>(), removed.collect::<Vec<_>>(), "{machine:?}");
    }
}

#[test]
fn launchd_gets_a_list_that_starts_nothing_before_it_is_asked() {
    let strange = Machine { program: PathBuf::from("/opt/A&B/billing-daemon"), ..machine(System::Launchd) };
    let plan = plan(Action::Install, &strange);
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
    let start = super::plan(Action::Start, &ada(System::Launchd));
    assert_eq!(
        shown(&start),
        [
            "run launchctl enable gui/1000/billing-daemon",
            "run launchctl bootstrap gui/1000 /home/ada/Library/LaunchAgents/billing-daemon.plist",
        ]
    );
}

#[test]
fn windows_gets_a_service_with_an_account_of_its_own() {
    let plan = plan(Action::Install, &machine(System::Windows));
    let shown = shown(&plan).join("\n");
    for part in [
        r#"binPath= '"C:\Program Files\billing-daemon\billing-daemon.exe" run --as-service --config "C:\ProgramData\billing-daemon\jobs.toml" --log-file "C:\ProgramData\billing-daemon\logs\billing-daemon.log"'"#,
        r"make the folder C:\ProgramData\billing-daemon\logs",
        r"run icacls.exe C:\ProgramData\billing-daemon\logs /grant 'NT SERVICE\billing-daemon:(OI)(CI)M'",
        r"obj= 'NT SERVICE\billing-daemon'",
        r"run sc.exe failureflag billing-daemon 1",
        r"run icacls.exe C:\ProgramData\billing-daemon\database-url /inheritance:r",
    ] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
}

/// What the plan lets the service write is what people are told to read.
#[test]
fn the_log_that_is_told_is_where_the_service_writes_it() {
    for (machine, told) in [
        (machine(System::Systemd), "journalctl --unit billing-daemon"),
        (ada(System::Systemd), "journalctl --user --unit billing-daemon"),
        (machine(System::Launchd), "/usr/local/var/lib/billing-daemon/billing-daemon.log"),
        (ada(System::Launchd), "/home/ada/Library/Logs/billing-daemon.log"),
        (machine(System::Windows), r"C:\ProgramData\billing-daemon\logs\billing-daemon.log"),
    ] {
        assert_eq!(log(&machine), told);
        let steps = plan(Action::Install, &machine).steps.into_iter();
        let texts = steps.map(|step| match step {
            Step::Write { text, .. } => text,
            other => other.to_string(),
        });
        let written = texts.collect::<Vec<_>>().join("\n");
        assert!(written.contains(told) || machine.system == System::Systemd, "{told} in {written}");
    }
}
