//! The operating system, the user and the name of this host.

use std::fmt;

/// An operating system that the daemon knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Platform {
    /// Linux, and every unknown system.
    #[default]
    Linux,
    /// Windows, with its service control manager.
    Windows,
    /// macOS, with launchd.
    MacOs,
}

impl Platform {
    /// Returns the platform of this host; `None` if it is unknown, which is treated as [`Platform::default`] with a warning.
    #[must_use]
    pub fn current() -> Option<Self> {
        Self::from_name(std::env::consts::OS)
    }

    /// Returns the platform with a name of [`std::env::consts::OS`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "linux" => Some(Self::Linux),
            "windows" => Some(Self::Windows),
            "macos" => Some(Self::MacOs),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux => "linux",
            Self::Windows => "windows",
            Self::MacOs => "macos",
        })
    }
}

/// Returns the effective user id of this process; 0 where users have no ids.
#[cfg(unix)]
pub(crate) fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(not(unix))]
pub(crate) fn uid() -> u32 {
    0
}

/// Returns the name of this host.
#[must_use]
pub fn hostname() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_platform_is_linux() {
        for (name, shown) in
            [("linux", "linux"), ("windows", "windows"), ("macos", "macos"), ("plan9", "linux")]
        {
            assert_eq!(Platform::from_name(name).unwrap_or_default().to_string(), shown);
        }
        assert_eq!(Platform::from_name("plan9"), None, "so that the caller can warn");
    }
}
