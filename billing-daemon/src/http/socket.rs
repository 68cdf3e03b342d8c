//! Serves HTTP on a Unix socket.

use std::{io, path::Path};

use axum::{Router, extract::connect_info::IntoMakeServiceWithConnectInfo};

use super::{PeerIdentity, Serving};

type Service = IntoMakeServiceWithConnectInfo<Router, PeerIdentity>;

/// Serves the socket at `path` until `stopped`. Every user can connect to a `shared` one; the access rules then reject the others.
#[cfg(unix)]
pub(super) async fn serve(
    path: &Path,
    shared: bool,
    service: Service,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> io::Result<Serving> {
    remove_left_over(path).await?;
    let listener = tokio::net::UnixListener::bind(path)?;
    if shared {
        // Independent of the umask. Connecting needs the right to write.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    }
    tracing::info!("listening for HTTP on {}", path.display());
    Ok(Box::pin(axum::serve(listener, service).with_graceful_shutdown(stopped).into_future()))
}

#[cfg(not(unix))]
#[expect(clippy::unused_async, reason = "the Unix version awaits")]
pub(super) async fn serve(_: &Path, _: bool, _: Service, _: impl Future<Output = ()>) -> io::Result<Serving> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "Unix sockets are not supported on this system: listen on 127.0.0.1:9464",
    ))
}

#[cfg(unix)]
impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, tokio::net::UnixListener>>
    for PeerIdentity
{
    fn connect_info(stream: axum::serve::IncomingStream<'_, tokio::net::UnixListener>) -> Self {
        Self::User(stream.io().peer_cred().ok().map(|peer| peer.uid()))
    }
}

/// Removes the socket of a daemon that died: no process answers on it.
#[cfg(unix)]
async fn remove_left_over(path: &Path) -> io::Result<()> {
    match tokio::net::UnixStream::connect(path).await {
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
