//! What the parameters of a job contradict, and what they name that this host does not have.

#[cfg(unix)]
use std::path::Path;
use std::{io, time::Duration};

use billing_scheduler::{Remark, Severity, duration};

use crate::{HttpParams, Secret, pem};

fn remark(severity: Severity, path: &[&str], message: String, help: &str) -> Remark {
    let path = path.iter().map(|key| (*key).to_owned()).collect();
    Remark { severity, path, message, help: Some(help.to_owned()) }
}

/// A file that is missing here may be there when the job runs, or on the host where it runs.
fn missing(path: &[&str], message: String) -> Remark {
    remark(Severity::Warning, path, message, "create it before the job runs, or correct the path")
}

pub(crate) fn http(params: &HttpParams, timeout: Duration) -> Vec<Remark> {
    let mut remarks = Vec::new();
    if params.timeout.is_some_and(|own| own > timeout) {
        let message = format!("`timeout` is longer than the job's, which is {}", duration::format(timeout));
        remarks.push(remark(
            Severity::Error,
            &["timeout"],
            message,
            "shorten it, or lengthen `timeout` of the job",
        ));
    }
    if let Some(file) = &params.ca_file {
        match pem::certificates(file) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let message = format!("`ca-file` {}: {error}", file.display());
                let help = "name a file of certificates that begin with -----BEGIN CERTIFICATE-----";
                remarks.push(remark(Severity::Error, &["ca-file"], message, help));
            }
            Err(error) => {
                remarks.push(missing(&["ca-file"], format!("`ca-file` {}: {error}", file.display())));
            }
        }
    }
    remarks.extend(unreadable(&["url"], &params.url));
    remarks.extend(params.body.iter().filter_map(|body| unreadable(&["body"], body)));
    remarks.extend(params.headers.iter().filter_map(|(name, value)| unreadable(&["headers", name], value)));
    remarks
}

/// A secret in a file that does not exist. One that this user may not read may be readable for the daemon's user.
fn unreadable(path: &[&str], secret: &Secret) -> Option<Remark> {
    let Secret::File(file) = secret else { return None };
    let is_missing = file.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    is_missing.then(|| missing(path, format!("{} does not exist", file.display())))
}

#[cfg(unix)]
pub(crate) fn command(params: &crate::CommandParams) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let folder = params.working_directory.as_deref();
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        remarks.push(missing(&["working-directory"], format!("{} is not a folder", folder.display())));
    }
    let program = Path::new(&params.argv[0]);
    if params.argv[0].contains('/') {
        let path = folder.map_or_else(|| program.to_owned(), |folder| folder.join(program));
        // What is in a missing folder needs no second warning.
        if folder.is_none_or(Path::is_dir) && !is_program(&path) {
            remarks.push(missing(&["argv", "0"], format!("{} is not a program", path.display())));
        }
    } else if let Some(folders) = params.path()
        && !folders.split(':').any(|folder| is_program(&Path::new(folder).join(program)))
    {
        let message = format!("no program `{}` in {folders}", params.argv[0]);
        let help = "install it before the job runs, or write its whole path";
        remarks.push(remark(Severity::Warning, &["argv", "0"], message, help));
    }
    remarks.extend(
        params.environment.iter().filter_map(|(name, value)| unreadable(&["environment", name], value)),
    );
    remarks
}

#[cfg(unix)]
fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    // Not whether this user may execute it: the daemon is often another one.
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
