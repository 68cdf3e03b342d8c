//! Files that hold a secret: nobody but their owner and group may read or change them.

use std::{fs, path::Path};

/// Whether anybody on this machine may read or change `path`, in words that say how to mend it. A file that is not there is
/// somebody else's complaint; where files have no modes, this sees nothing.
#[must_use]
pub fn exposed(path: &Path) -> Option<String> {
    let mode = mode(path).filter(|mode| mode & 0o006 != 0)?;
    let file = path.display();
    Some(format!(
        "{file} holds a secret and has mode {mode:04o}, so every user of this machine may read or change it: run \
         `chmod o= {file}`, or say --allow-readable-secrets"
    ))
}

#[cfg(unix)]
fn mode(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    Some(fs::metadata(path).ok()?.permissions().mode() & 0o7777)
}

#[cfg(not(unix))]
fn mode(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|_| 0o600)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_exposed_if_others_may_read_or_write_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("url");
        assert_eq!(exposed(&file), None, "what is not there exposes nothing");
        fs::write(&file, "secret").expect("a writable folder");
        for (mode, refused) in [(0o600, false), (0o640, false), (0o660, false), (0o644, true), (0o602, true)]
        {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("our own file");
            let told = exposed(&file);
            assert_eq!(told.is_some(), refused, "{mode:o}");
            assert!(
                told.is_none_or(
                    |told| told.contains("chmod o= ") && !told.contains("secret and has mode 0600")
                )
            );
        }
    }
}
