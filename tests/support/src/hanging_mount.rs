//! A file system whose server never answers, like a network share of a host that is gone.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    os::fd::AsRawFd as _,
    path::PathBuf,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::skipped;

/// A mounted file system, removed when this is dropped. Every access to a path in it waits until then.
#[derive(Debug)]
pub struct HangingMount {
    folder: TempDir,
    /// The kernel writes its requests to this device, which is never read.
    _device: File,
}

impl HangingMount {
    /// `None`, with a message, where mounting is not permitted: it needs root's rights and FUSE.
    #[must_use]
    pub fn new() -> Option<Self> {
        let folder =
            tempfile::Builder::new().prefix("billing-e2e-mount-").tempdir().expect("a folder is made");
        let mounted = OpenOptions::new().read(true).write(true).open("/dev/fuse").and_then(|device| {
            let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
            let options = CString::new(options).expect("it has no NUL");
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            mount("billing-e2e", folder.path(), "fuse", flags, options.as_c_str())?;
            Ok(device)
        });
        match mounted {
            Ok(device) => Some(Self { folder, _device: device }),
            Err(error) => {
                skipped(&format!("a file system that does not answer cannot be mounted: {error}"));
                None
            }
        }
    }

    /// A path in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for HangingMount {
    fn drop(&mut self) {
        // Detached, so that it also ends while a program waits for it.
        let _ = unmount(self.folder.path(), UnmountFlags::DETACH);
    }
}
