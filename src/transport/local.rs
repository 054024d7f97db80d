//! The local socket of a running process: `ctl.sock` in its data directory, accessible only to the owner of
//! the directory.
//!
//! Socket paths are limited to about 100 bytes while data directories are not, so both sides address the socket through a
//! descriptor of its directory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Name of the socket within the data directory.
pub const SOCKET: &str = "ctl.sock";

/// Maximum number of concurrent requests; others wait. A few are long-lived, such as those that follow the log.
const AT_ONCE: usize = 128;
/// Delay after a failed accept, for example when no file descriptor is available.
const PAUSE: Duration = Duration::from_millis(100);

/// Returns a short path to the socket in `directory`, valid while the returned file is open.
///
/// # Errors
/// If the directory cannot be opened.
pub fn short_path(directory: &Path) -> io::Result<(File, PathBuf)> {
    let handle = File::open(directory)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd())).join(SOCKET);
    Ok((handle, path))
}

/// Listens in `directory`, replacing a socket left by a dead process. The caller must hold the directory's lock.
///
/// # Errors
/// If the operating system denies it.
pub fn listen(directory: &Path) -> io::Result<UnixListener> {
    let (_handle, path) = short_path(directory)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Returns whether the caller runs as the user of this process, or as root. The socket's mode ensures this already, but a
/// mode is easily changed by mistake.
fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|caller| caller.uid() == 0 || caller.uid() == own)
}

/// Incoming requests at the local socket.
pub struct Requests {
    listener: UnixListener,
    places: Arc<Semaphore>,
}

impl Requests {
    /// Accepts requests from `listener`.
    #[must_use]
    pub fn new(listener: UnixListener) -> Requests {
        Requests { listener, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Returns the next request; its slot is released when the permit is dropped.
    pub async fn next(&self) -> (UnixStream, Option<OwnedSemaphorePermit>) {
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) if is_allowed(&stream) => return (stream, place),
                Ok(_) => tracing::warn!("refused a connection of another user to the local socket"),
                Err(error) => {
                    tracing::warn!(%error, "failed to accept on the local socket");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
