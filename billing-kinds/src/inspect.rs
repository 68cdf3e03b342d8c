//! Remarks about parameters: contradictions, and programs, folders and files that this host does not have.

#[cfg(unix)]
use std::path::Path;
use std::{io, time::Duration};

use billing_scheduler::{Remark, Severity, duration};

use crate::{HttpParams, Secret, input_file, pem};

fn remark(severity: Severity, path: &[&str], message: String, help: &str) -> Remark {
    let path = path.iter().map(|key| (*key).to_owned()).collect();
    Remark { severity, path, message, help: Some(help.to_owned()) }
}

/// Returns a warning: a file that is missing here may exist when and where the job runs.
fn missing(path: &[&str], message: String) -> Remark {
    remark(Severity::Warning, path, message, "create it before the job runs, or correct the path")
}

pub(crate) fn http(params: &HttpParams, timeout: Duration) -> Vec<Remark> {
    let mut remarks = Vec::new();
    if params.timeout.is_some_and(|own| own > timeout) {
        let message =
            format!("`timeout` is longer than that of the job, which is {}", duration::format(timeout));
        remarks.push(remark(
            Severity::Error,
            &["timeout"],
            message,
            "shorten it, or increase `timeout` of the job",
        ));
    }
    if let Some(file) = &params.ca_file {
        match pem::certificates(file) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let message = format!("`ca-file` {}: {error}", file.display());
                let help = "use a file with certificates, which begin with -----BEGIN CERTIFICATE-----";
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

/// Returns a remark if the file of a secret does not exist. The daemon's user may have more rights than this one, so a file that
/// cannot be read is not reported.
fn unreadable(path: &[&str], secret: &Secret) -> Option<Remark> {
    let Secret::File(file) = secret else { return None };
    (!input_file::exists(file)).then(|| missing(path, format!("{} does not exist", file.display())))
}

#[cfg(unix)]
pub(crate) fn command(params: &crate::CommandParams) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let folder = params.working_directory.as_deref();
    if let Some(folder) = folder.filter(|folder| !is_folder(folder)) {
        remarks.push(missing(&["working-directory"], format!("{} is not a folder", folder.display())));
    }
    let program = Path::new(&params.argv[0]);
    if params.argv[0].contains('/') {
        let path = folder.map_or_else(|| program.to_owned(), |folder| folder.join(program));
        // The missing folder is reported already.
        if folder.is_none_or(is_folder) && !is_program(&path) {
            remarks.push(missing(&["argv", "0"], format!("{} is not a program", path.display())));
        }
    } else if let Some(folders) = params.path()
        && !folders.split(':').any(|folder| is_program(&Path::new(folder).join(program)))
    {
        let message = format!("no program `{}` in {folders}", params.argv[0]);
        let help = "install it before the job runs, or write its absolute path";
        remarks.push(remark(Severity::Warning, &["argv", "0"], message, help));
    }
    remarks.extend(
        params.environment.iter().filter_map(|(name, value)| unreadable(&["environment", name], value)),
    );
    remarks
}

#[cfg(unix)]
fn is_folder(path: &Path) -> bool {
    input_file::metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

#[cfg(unix)]
fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    // Not whether this user may execute it: the daemon often runs as another user.
    input_file::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
