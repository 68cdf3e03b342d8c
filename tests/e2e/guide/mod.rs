//! The commands of docs/install.md and docs/operate/handover.md, executed as they are written, with the program that the tests built, in a root of the test's
//! own.

use std::{fs, path::Path, process::Command};

use billing_test_support::{Db, Login, postgres_command, skipped};

use crate::daemon::{fetch, seed};

const GUIDE: &str =
    concat!(include_str!("../../../docs/install.md"), include_str!("../../../docs/operate/handover.md"));
const WORLD: &str = include_str!("world.sh");
const UNIT: &str = include_str!("unit.sh");

/// The commands that the guide marks with this name.
fn commands(name: &str) -> String {
    let marked = GUIDE.split_once(&format!("<!-- run: {name} -->\n```sh\n"));
    let commands = marked.and_then(|(_, rest)| rest.split_once("\n```")).map(|(commands, _)| commands);
    commands.unwrap_or_else(|| panic!("the guide marks no commands as `{name}`")).to_owned()
}

/// Why no root of the test's own can be made here, if so.
fn obstacle(shared: &Path) -> Option<String> {
    let works = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    let tools = ["runuser", "setpriv", "systemctl", "systemd-sysusers", "systemd-tmpfiles"];
    if let Some(missing) = tools.into_iter().find(|tool| !works("sh", &["-c", &format!("command -v {tool}")]))
    {
        return Some(format!("{missing} is missing"));
    }
    let layer = shared.join("probe").display().to_string();
    let probe = format!(
        "mkdir {layer} && mount -t tmpfs tmpfs {layer} && mkdir {layer}/u {layer}/w {layer}/r &&
         mount -t overlay overlay -o lowerdir=/,upperdir={layer}/u,workdir={layer}/w {layer}/r"
    );
    (!works("unshare", &["--mount", "--pid", "--fork", "sh", "-c", &probe]))
        .then(|| "this takes root and an overlay file system".to_owned())
}

/// Executes a script of blocks of the guide and of checks; returns what was printed.
fn execute(script: &str, files: &[(&str, &str)]) -> Option<String> {
    let shared = tempfile::Builder::new().prefix("billing-guide-").tempdir().expect("a folder");
    let shared = shared.path();
    if let Some(obstacle) = obstacle(shared) {
        skipped(&format!("{obstacle}: the operations guide is not executed"));
        return None;
    }
    let folder = shared.join("target/release");
    fs::create_dir_all(&folder).expect("a folder of ours");
    fs::copy(env!("CARGO_BIN_EXE_e2e-daemon"), folder.join("billing-daemon")).expect("the program is there");
    let script = format!("cd /mnt\n. /mnt/unit.sh\n{script}");
    for (name, text) in
        [("guide.sh", script.as_str()), ("unit.sh", UNIT), ("world.sh", WORLD)].iter().chain(files)
    {
        fs::write(shared.join(name), text).expect("a folder of ours");
    }
    let mut world = Command::new("unshare");
    world
        .args(["--mount", "--pid", "--fork", "--kill-child", "bash"])
        .arg(shared.join("world.sh"))
        .arg(shared);
    let ended = world.output().expect("it was tried a moment ago");
    let output = [ended.stdout, ended.stderr].concat();
    let output = String::from_utf8_lossy(&output).into_owned();
    let log = fs::read_to_string(shared.join("log")).unwrap_or_default();
    assert!(ended.status.success(), "{output}\n--- the daemon:\n{log}");
    Some(output)
}

#[tokio::test]
async fn guide_installs_with_sqlite() {
    let script = [
        commands("install"),
        // The service's user owns its database, which `migrate up` alone creates.
        "! sudo billing-daemon status".to_owned(),
        commands("sqlite"),
        "[[ $(stat --format %U /var/lib/billing-daemon/billing.db) = billing-daemon ]]".to_owned(),
        "start_unit".to_owned(),
        commands("check"),
        "stop_unit".to_owned(),
        // A database that root creates is reported.
        "rm /var/lib/billing-daemon/billing.db*".to_owned(),
        "sudo DATABASE_URL=sqlite:///var/lib/billing-daemon/billing.db billing-daemon migrate up".to_owned(),
        "! sudo billing-daemon doctor --json >/mnt/doctor".to_owned(),
        "grep 'billing.db belongs to root, and the service runs as billing-daemon' /mnt/doctor".to_owned(),
        "sudo billing-daemon service uninstall".to_owned(),
        "[[ ! -e /etc/systemd/system/billing-daemon.service && -e /var/lib/billing-daemon/billing.db ]]"
            .to_owned(),
    ];
    let Some(output) = execute(&script.join("\n"), &[]) else { return };
    assert!(output.contains("write /etc/systemd/system/billing-daemon.service"), "{output}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guide_hands_over_from_panel() {
    let db = Db::g2_role().await;
    let organizations = seed(&db, 3).await;
    let owner = db.url_for(Login::Owner);
    // The guide creates our tables and grants what they need.
    let down = crate::daemon::program().env("DATABASE_URL", &owner);
    down.run("migrate down --yes").await.expect_code(0);
    let psql = postgres_command("psql");
    let grant =
        |file| format!("{} $OWNER -q -v ON_ERROR_STOP=1 -f /mnt/{file}", psql.get_program().display());
    let script = [
        commands("install"),
        commands("address"),
        commands("migrate"),
        grant("panel.sql"),
        grant("billing.sql"),
        grant("policies.sql"),
        commands("examine"),
        commands("start"),
        "start_unit".to_owned(),
        commands("check"),
        "! DATABASE_URL=$OWNER billing-daemon guard remove".to_owned(),
        "stop_unit".to_owned(),
        commands("back"),
        format!("{} $OWNER -At -c 'SELECT count(*) FROM billing_charges'", psql.get_program().display()),
        commands("remove"),
    ];
    let script = script.join("\n");
    let addresses = [
        ("postgres://billing_run:...@localhost/panel", &db.url),
        ("postgres://panel_owner:...@localhost/panel", &owner),
    ];
    let script = addresses.into_iter().fold(script, |script, (written, real)| {
        assert!(script.contains(written), "the guide has no {written}");
        script.replace(written, real)
    });
    let [panel, billing, policies] = ["panel", "billing", "policies"].map(billing_test_support::operations);
    let files = [("panel.sql", panel.as_str()), ("billing.sql", &billing), ("policies.sql", &policies)];
    let Some(output) = execute(&script, &files) else { return };
    assert!(
        output.lines().any(|line| line == organizations.len().to_string()),
        "each is charged once: {output}"
    );
    assert_eq!(fetch(&db, "SELECT to_regclass('billing_charges')").await, "-", "nothing of ours is left");
}
