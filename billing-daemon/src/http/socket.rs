//! Listens on a Unix socket.

use std::{io, path::Path};

use tokio::net::{UnixListener, UnixStream};

/// Listens at `path`. Every user can connect to a `shared` one; the access rules then reject the others.
pub(super) async fn listen(path: &Path, shared: bool) -> io::Result<UnixListener> {
    remove_left_over(path).await?;
    let listener = UnixListener::bind(path)?;
    if shared {
        // Independent of the umask. Connecting needs the right to write.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    }
    Ok(listener)
}

/// Removes the socket of a daemon that died: no process answers on it.
async fn remove_left_over(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another process listens on {}", path.display()),
        )),
        Err(_) if path.exists() => {
            use std::os::unix::fs::FileTypeExt;
            if std::fs::symlink_metadata(path)?.file_type().is_socket() {
                std::fs::remove_file(path)
            } else {
                let message = format!("{} exists and is not a socket", path.display());
                Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
            }
        }
        Err(_) => Ok(()),
    }
}
