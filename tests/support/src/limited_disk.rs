//! A file system of a few megabytes, for tests that fill a disk.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::fs::statvfs;
use tempfile::TempDir;

use crate::skipped;

/// A mounted file system, removed when this is dropped.
#[derive(Debug)]
pub struct LimitedDisk {
    folder: TempDir,
}

impl LimitedDisk {
    /// `None`, with a message, where mounting is not permitted: it needs root's rights.
    #[must_use]
    pub fn of(mebibytes: u32) -> Option<Self> {
        let folder =
            tempfile::Builder::new().prefix("billing-e2e-disk-").tempdir().expect("a folder is made");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "billing-e2e"]).arg(folder.path());
        let mounted = mount.stdout(Stdio::null()).stderr(Stdio::null()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self { folder });
        }
        skipped("only root may mount a disk to fill");
        None
    }

    /// The folder that it is mounted on.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives it to the owner of `other`.
    pub fn belongs_to_owner_of(&self, other: &Path) {
        let owner = fs::metadata(other).expect("it is there");
        chown(self.path(), Some(owner.uid()), Some(owner.gid())).expect("root may");
    }

    /// Fills the file system.
    pub fn fill(&self) {
        let mut ballast = File::create(self.ballast()).expect("there is room for a name");
        for size in [65_536, 4_096] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Fills the file system until this number of bytes is free.
    pub fn fill_until_free(&self, free: u64) {
        let disk = statvfs(self.path()).expect("it is mounted");
        let ballast = (disk.f_bavail * disk.f_frsize).saturating_sub(free);
        fs::write(self.ballast(), vec![0; ballast.try_into().expect("a small disk")]).expect("it has room");
    }

    /// Deletes what filled the file system.
    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for LimitedDisk {
    fn drop(&mut self) {
        // A process that still has a file open keeps it until it closes the file.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
