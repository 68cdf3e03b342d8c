//! Runs the service twice on one SQLite file.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

/// The running service. It gets SIGKILL if a test fails.
struct Service {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Service {
    fn start(folder: &Path) -> Self {
        let url = format!("sqlite://{}?mode=rwc", folder.join("service.db").display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_service"));
        let mut child = command.env("DATABASE_URL", url).stdout(Stdio::piped()).spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, lines }
    }

    /// Reads until a line has begun with each of `begins`, in any order, and returns their rests.
    fn lines<const N: usize>(&mut self, begins: [&str; N]) -> [String; N] {
        let mut rests = begins.map(|_| None);
        while rests.iter().any(Option::is_none) {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).expect("UTF-8");
            assert_ne!(read, 0, "the service ended before it had printed each of {begins:?}");
            for (begin, rest) in begins.iter().zip(&mut rests) {
                if let Some(found) = line.trim_end().strip_prefix(begin) {
                    rest.get_or_insert_with(|| found.to_owned());
                }
            }
        }
        rests.map(Option::unwrap_or_default)
    }

    /// Sends SIGTERM, and checks that the service ends with success.
    fn stop(mut self) {
        let sent = Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(sent.is_ok_and(|sent| sent.success()), "the service runs");
        // It must not wait for a reader of its output.
        std::io::copy(&mut self.lines, &mut std::io::sink()).expect("read");
        assert!(self.child.wait().expect("it ends").success());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It fails if the service has ended, as it should.
        let _ = self.child.kill();
    }
}

#[test]
fn service_continues_after_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let begins =
        ["the history has ", "a mail that thanks is ", "mail to ada: ", "finished `count-orders` of "];
    let mut service = Service::start(folder.path());
    let [rows, thanks, mail, _] = service.lines(begins);
    assert_eq!([rows.as_str(), &thanks, &mail], ["0 rows", "added", "order 1"]);
    service.stop();

    let mut service = Service::start(folder.path());
    let [rows, thanks, mail, _] = service.lines(begins);
    assert_eq!([thanks.as_str(), &mail], ["already in the queue", "order 2"]);
    let rows: usize = rows.trim_end_matches(" rows").parse().expect("a number");
    assert!(rows >= 2, "a mail and a count: {rows}");
    service.stop();
}
