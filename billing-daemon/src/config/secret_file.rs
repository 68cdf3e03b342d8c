//! Files that contain a secret: only their owner and group may read or change them.

use std::path::Path;

use billing_kinds::input_file::metadata;

/// Returns an error message if every user of this host may read or change `path`; `None` if the file is missing, or where files have
/// no modes.
#[must_use]
pub fn world_readable(path: &Path) -> Option<String> {
    let mode = mode(path).filter(|mode| mode & 0o006 != 0)?;
    let file = path.display();
    Some(format!(
        "{file} contains a secret and has mode {mode:04o}, so every user of this host may read or change it: run \
         `chmod o= {file}`, or use --allow-readable-secrets"
    ))
}

#[cfg(unix)]
fn mode(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    Some(metadata(path).ok()?.permissions().mode() & 0o7777)
}

#[cfg(not(unix))]
fn mode(path: &Path) -> Option<u32> {
    metadata(path).ok().map(|_| 0o600)
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn file_mode_decides_world_readable() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("url");
        assert_eq!(world_readable(&file), None, "a missing file is not readable");
        fs::write(&file, "secret").expect("a writable folder");
        for (mode, refused) in [(0o600, false), (0o640, false), (0o660, false), (0o644, true), (0o602, true)]
        {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("our own file");
            let message = world_readable(&file);
            assert_eq!(message.is_some(), refused, "{mode:o}");
            assert!(message.is_none_or(|message| message.contains("chmod o= ")));
        }
    }
}
