//! The service control manager of Windows. It calls into the process that it started, and expects its state.

use std::{
    ffi::OsString,
    io,
    process::ExitCode,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tracing::warn;
use windows_service::{
    define_windows_service,
    service::{
        ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType,
    },
    service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle},
    service_dispatcher,
};

use super::Notification;
use crate::host::SERVICE_NAME;

/// The command `run`, which the manager's call starts. It returns the exit code.
type Body = Box<dyn FnOnce() -> u8 + Send>;

static BODY: Mutex<Option<Body>> = Mutex::new(None);
static ENDED: Mutex<u8> = Mutex::new(0);
static HANDLE: OnceLock<ServiceStatusHandle> = OnceLock::new();
static STOP: Notify = Notify::const_new();

define_windows_service!(service_entry, service_main);

/// Runs `body` as the service that the manager started this process for.
pub(crate) fn serve(body: impl FnOnce() -> u8 + Send + 'static) -> Result<ExitCode, windows_service::Error> {
    *BODY.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(body));
    service_dispatcher::start(SERVICE_NAME, service_entry)?;
    Ok(ExitCode::from(*ENDED.lock().unwrap_or_else(PoisonError::into_inner)))
}

fn service_main(_: Vec<OsString>) {
    let on_control = |control| match control {
        ServiceControl::Stop | ServiceControl::Shutdown => {
            STOP.notify_one();
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        _ => ServiceControlHandlerResult::NotImplemented,
    };
    let Ok(handle) = service_control_handler::register(SERVICE_NAME, on_control) else { return };
    let handle = HANDLE.get_or_init(|| handle);
    let body = BODY.lock().unwrap_or_else(PoisonError::into_inner).take();
    let code = body.map_or(0, |body| body());
    *ENDED.lock().unwrap_or_else(PoisonError::into_inner) = code;
    let mut stopped = status(ServiceState::Stopped, Duration::ZERO);
    if code != 0 {
        stopped.exit_code = ServiceExitCode::ServiceSpecific(u32::from(code));
    }
    if let Err(error) = handle.set_service_status(stopped) {
        warn!(%error, "cannot notify the service manager of the end: {error}");
    }
}

/// Returns when the manager requests a stop; never, if it did not start this process.
pub(crate) async fn stop_requested() {
    STOP.notified().await;
}

/// The manager, after its call.
pub(super) struct Channel {
    handle: ServiceStatusHandle,
}

impl Channel {
    #[expect(clippy::unnecessary_wraps, reason = "on other platforms it can fail")]
    pub(super) fn from_process() -> io::Result<Option<Self>> {
        Ok(HANDLE.get().map(|handle| Self { handle: *handle }))
    }

    /// Windows has no watchdog for services.
    #[expect(clippy::unused_self, reason = "other platforms have a watchdog")]
    pub(super) fn watchdog(&self) -> Option<Duration> {
        None
    }

    pub(super) fn send(&self, messages: &[Notification<'_>]) -> io::Result<()> {
        let states = messages.iter().filter_map(|message| match message {
            Notification::Starting { within } => Some(status(ServiceState::StartPending, *within)),
            Notification::Ready => Some(status(ServiceState::Running, Duration::ZERO)),
            Notification::Stopping { within } => Some(status(ServiceState::StopPending, *within)),
            // Windows shows no status of a service.
            Notification::Reloading | Notification::Alive | Notification::Status(_) => None,
        });
        for state in states {
            self.handle.set_service_status(state).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

fn status(state: ServiceState, within: Duration) -> ServiceStatus {
    let accepted = match state {
        ServiceState::Running => ServiceControlAccept::STOP | ServiceControlAccept::SHUTDOWN,
        _ => ServiceControlAccept::empty(),
    };
    ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted: accepted,
        exit_code: ServiceExitCode::NO_ERROR,
        checkpoint: 0,
        wait_hint: within,
        process_id: None,
    }
}
