//! A Unix socket to answer on, where the system has them.

use std::{io, path::Path};

use axum::{Router, extract::connect_info::IntoMakeServiceWithConnectInfo};

use super::{PeerIdentity, Serving};

type Service = IntoMakeServiceWithConnectInfo<Router, PeerIdentity>;

/// Answers on the socket at `path` until `stopped`; on one that is shared, users beside root and ours can ask, and the guard says which
/// of them are answered.
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
        // Whatever the umask says: to connect is to write.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    }
    tracing::info!("answering HTTP on {}", path.display());
    Ok(Box::pin(axum::serve(listener, service).with_graceful_shutdown(stopped).into_future()))
}

#[cfg(not(unix))]
#[expect(clippy::unused_async, reason = "where there are sockets, it waits for them")]
pub(super) async fn serve(_: &Path, _: bool, _: Service, _: impl Future<Output = ()>) -> io::Result<Serving> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "this system has no such sockets: listen on 127.0.0.1:9464",
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

/// A socket that nobody answers on was left by a daemon that died.
#[cfg(unix)]
async fn remove_left_over(path: &Path) -> io::Result<()> {
    match tokio::net::UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another process answers on {}", path.display()),
        )),
        Err(_) if path.exists() => {
            use std::os::unix::fs::FileTypeExt;
            if std::fs::symlink_metadata(path)?.file_type().is_socket() {
                std::fs::remove_file(path)
            } else {
                let message = format!("{} is there and no socket", path.display());
                Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
            }
        }
        Err(_) => Ok(()),
    }
}
