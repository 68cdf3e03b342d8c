//! What machine this is, as the panel shows it.

use std::fmt;

/// An operating system that the daemon knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Platform {
    /// Also stands in for a system that is not known.
    #[default]
    Linux,
    /// Windows.
    Windows,
    /// macOS.
    MacOs,
}

impl Platform {
    /// This machine's; `None` if it is not known. [`Platform::default`] stands in for it then, with a warning.
    #[must_use]
    pub fn current() -> Option<Self> {
        Self::from_name(std::env::consts::OS)
    }

    /// The platform of a name as in [`std::env::consts::OS`].
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

/// The number of the user that this process acts for; 0, as of root, where users have none.
#[cfg(unix)]
pub(crate) fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(not(unix))]
pub(crate) fn uid() -> u32 {
    0
}

/// This machine's name.
#[must_use]
pub fn hostname() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_reads_as_its_name_and_an_unknown_one_as_linux() {
        for (name, shown) in
            [("linux", "linux"), ("windows", "windows"), ("macos", "macos"), ("plan9", "linux")]
        {
            assert_eq!(Platform::from_name(name).unwrap_or_default().to_string(), shown);
        }
        assert_eq!(Platform::from_name("plan9"), None, "so that the caller can warn");
    }
}
