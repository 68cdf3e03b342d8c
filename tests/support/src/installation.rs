//! What tests use of the host: the programs of PostgreSQL, a library that changes a clock, and a user.

use std::{
    env, fs, io,
    os::unix::{
        fs::{MetadataExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
};

/// The folder of `initdb`, `pg_ctl` and `postgres`: on the PATH, or the newest of those that Debian installs.
pub(crate) fn find_programs() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    env::split_paths(&path)
        .chain(versions.into_iter().map(|(_, folder)| folder))
        .find(|folder| ["initdb", "pg_ctl", "postgres"].iter().all(|program| folder.join(program).is_file()))
}

/// A command of PostgreSQL, such as `pg_dump`, of the version that the tests' servers have.
///
/// # Panics
/// If PostgreSQL is not installed.
#[must_use]
pub fn postgres_command(name: &str) -> Command {
    // The folder on the PATH may have links to a few of them only.
    let server = find_programs().expect("a server of it runs").join("postgres");
    let server = fs::canonicalize(server).expect("it is there");
    Command::new(server.with_file_name(name))
}

/// Returns the library that changes the clock of a process, if it is installed. Debian has it in a folder of the host's architecture.
#[must_use]
pub fn find_faketime() -> Option<PathBuf> {
    let of_architectures = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].into_iter().map(PathBuf::from);
    let files = folders.chain(of_architectures).map(|folder| folder.join("faketime/libfaketime.so.1"));
    files.into_iter().find(|file| file.is_file())
}

/// Gives a folder of this process to the user that servers run as, and lets the command run as this user: servers refuse to run as
/// root.
///
/// # Errors
/// If the folder cannot be read, or the user of this process may not give it away.
pub fn run_unprivileged(command: &mut Command, folder: &Path) -> io::Result<()> {
    if fs::metadata("/proc/self")?.uid() == 0 {
        let (uid, gid) = postgres_user().unwrap_or(UNPRIVILEGED);
        chown(folder, Some(uid), Some(gid))?;
        command.uid(uid).gid(gid);
    }
    Ok(())
}

/// The ids of a user without rights, on every Linux system.
const UNPRIVILEGED: (u32, u32) = (65_534, 65_534);

/// The user and group ids of `postgres`, if there is such a user.
fn postgres_user() -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let ids_of = |name: &str| {
        let mut fields =
            users.lines().map(|line| line.split(':')).find(|line| line.clone().next() == Some(name))?;
        Some((fields.nth(2)?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    ids_of("postgres")
}
