//! Files in PEM: certificates and private keys.

use std::{io, path::Path};

use ureq::tls::{Certificate, PemItem, PrivateKey, parse_pem};

use crate::input_file;

/// Reads the certificates in a file, at least one.
///
/// # Errors
/// The file cannot be read; or, as [`io::ErrorKind::InvalidData`], is not valid PEM or has no certificate.
pub fn certificates(path: &Path) -> io::Result<Vec<Certificate<'static>>> {
    let certificates: Vec<_> = items(path)?
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() { Err(invalid("it has no certificate in PEM")) } else { Ok(certificates) }
}

/// Reads the first private key in a file.
///
/// # Errors
/// The file cannot be read; or, as [`io::ErrorKind::InvalidData`], is not valid PEM or has no private key.
pub fn private_key(path: &Path) -> io::Result<PrivateKey<'static>> {
    let key = items(path)?.into_iter().find_map(|item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    });
    key.ok_or_else(|| invalid("it has no private key in PEM"))
}

fn items(path: &Path) -> io::Result<Vec<PemItem<'static>>> {
    let text = input_file::read(path)?;
    parse_pem(&text).collect::<Result<_, _>>().map_err(|_| invalid("it is not valid PEM"))
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
