//! Who is at the other end of a connection, as far as the transport shows it.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// The peer of a connection. Limits count for each peer separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PeerIdentity {
    /// The host with this address. Of an IPv6 address only the network counts, because one host can use all addresses in it.
    Host(IpAddr),
    /// The user id of a process on this host; `None` if the system does not report it.
    #[cfg_attr(not(unix), expect(dead_code, reason = "only a Unix socket identifies its user"))]
    User(Option<u32>),
}

impl From<SocketAddr> for PeerIdentity {
    fn from(address: SocketAddr) -> Self {
        Self::Host(match address.ip().to_canonical() {
            IpAddr::V6(ip) if !ip.is_loopback() => {
                let [a, b, c, d, ..] = ip.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            ip => ip,
        })
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(ip) => ip.fmt(f),
            Self::User(Some(uid)) => write!(f, "user {uid}"),
            Self::User(None) => f.write_str("an unknown user"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_is_address_or_network() {
        for (address, expected) in [
            ("127.0.0.2:1", "127.0.0.2"),
            ("[::1]:1", "::1"),
            ("[::ffff:10.0.0.1]:1", "10.0.0.1"),
            ("[2001:db8:1:2:3:4:5:6]:1", "2001:db8:1:2::"),
        ] {
            let peer = PeerIdentity::from(address.parse::<SocketAddr>().expect("an address"));
            assert_eq!(peer.to_string(), expected);
        }
    }
}
