//! systemd's protocol, `sd_notify(3)`: a datagram of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names. Not by the crate
//! `sd-notify`: see ADR 19.

use std::{
    env,
    ffi::OsStr,
    fmt::Write as _,
    io,
    os::unix::{
        ffi::OsStrExt as _,
        net::{SocketAddr, UnixDatagram},
    },
    process,
    time::Duration,
};

use super::Notification;

/// How long a message waits for a manager that reads slowly.
const SEND_TIMEOUT: Duration = Duration::from_millis(500);

/// The socket, and the watchdog of this process.
pub(super) struct Channel {
    socket: UnixDatagram,
    manager: SocketAddr,
    watchdog: Option<Duration>,
}

impl Channel {
    pub(super) fn from_process() -> io::Result<Option<Self>> {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        let variable = |name: &str| env::var(name).ok();
        let watchdog = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), process::id());
        Ok(Some(Self { socket, manager: address(&name)?, watchdog }))
    }

    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    pub(super) fn send(&self, messages: &[Notification<'_>]) -> io::Result<()> {
        let text = datagram(messages, monotonic());
        // Without a connection, so that a restarted manager receives it under the same name.
        self.socket.send_to_addr(text.as_bytes(), &self.manager).map(drop)
    }
}

/// Returns the address of a path or, after `@`, of a name in Linux's abstract namespace.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = name.as_bytes().strip_prefix(b"@") {
        return <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
    }
    if name.as_bytes().starts_with(b"/") {
        return SocketAddr::from_pathname(name);
    }
    let message = format!("NOTIFY_SOCKET={} is not a socket's name", name.display());
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

/// Returns the watchdog's timeout, if it watches the process `ours`.
fn watchdog(usec: Option<String>, of: Option<String>, ours: u32) -> Option<Duration> {
    let is_ours = of.is_none_or(|pid| pid.parse() == Ok(ours));
    let usec = usec?.parse().ok().filter(|usec| *usec > 0 && is_ours)?;
    Some(Duration::from_micros(usec))
}

fn datagram(messages: &[Notification<'_>], monotonic: Duration) -> String {
    messages.iter().fold(String::new(), |mut text, message| {
        // Writing to a string does not fail.
        let _ = match message {
            Notification::Starting { within } => writeln!(text, "EXTEND_TIMEOUT_USEC={}", within.as_micros()),
            Notification::Ready => writeln!(text, "READY=1"),
            // systemd assigns the next `READY=1` to a reload by this time.
            Notification::Reloading => {
                writeln!(text, "RELOADING=1\nMONOTONIC_USEC={}", monotonic.as_micros())
            }
            Notification::Alive => writeln!(text, "WATCHDOG=1"),
            Notification::Stopping { within } => {
                writeln!(text, "STOPPING=1\nEXTEND_TIMEOUT_USEC={}", within.as_micros())
            }
            // A second line would be a separate message.
            Notification::Status(status) => writeln!(text, "STATUS={}", status.replace('\n', " ")),
        };
        text
    })
}

/// The clock that systemd compares with: the monotonic one, which stops while the host sleeps.
fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |part: i64| u64::try_from(part).unwrap_or_default();
    Duration::from_secs(part(now.tv_sec)) + Duration::from_nanos(part(now.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagram_has_the_lines_of_systemd() {
        let second = Duration::from_secs(1);
        for (message, text) in [
            (Notification::Starting { within: second }, "EXTEND_TIMEOUT_USEC=1000000\n"),
            (Notification::Ready, "READY=1\n"),
            (Notification::Reloading, "RELOADING=1\nMONOTONIC_USEC=7000000\n"),
            (Notification::Alive, "WATCHDOG=1\n"),
            (Notification::Stopping { within: 2 * second }, "STOPPING=1\nEXTEND_TIMEOUT_USEC=2000000\n"),
            (Notification::Status("3 jobs\nREADY=1"), "STATUS=3 jobs READY=1\n"),
        ] {
            assert_eq!(datagram(&[message], 7 * second), text);
        }
        assert_eq!(
            datagram(&[Notification::Ready, Notification::Status("3 jobs")], second),
            "READY=1\nSTATUS=3 jobs\n"
        );
    }

    #[test]
    fn watchdog_of_another_process_is_ignored() {
        let text = |text: &str| Some(text.to_owned());
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog(text("1000000"), None, 7), second);
        assert_eq!(watchdog(text("1000000"), text("7"), 7), second);
        for (usec, pid) in [("1000000", "8"), ("1000000", "x"), ("0", "7"), ("soon", "7"), ("-1", "7")] {
            assert_eq!(watchdog(text(usec), text(pid), 7), None, "{usec} {pid}");
        }
        assert_eq!(watchdog(None, text("7"), 7), None);
    }

    #[test]
    fn non_socket_name_is_rejected() {
        assert!(address(OsStr::new("/run/systemd/notify")).is_ok());
        assert!(address(OsStr::new("vsock:2:9")).is_err());
        assert_eq!(address(OsStr::new("@name")).is_ok(), cfg!(target_os = "linux"));
    }
}
