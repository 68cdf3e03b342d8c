//! The receiver ends in the wanted state, whatever is lost, repeated or late.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use http::HeaderMap;
use panel_hooks::{Provider, Receiver};
use serde_json::json;
use standardwebhooks::Webhook;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[derive(Clone, Default)]
struct Instances {
    run: Arc<Mutex<BTreeMap<String, bool>>>,
    fails: Arc<AtomicBool>,
}

impl Provider for Instances {
    fn set_running(&self, instance: &str, runs: bool) -> io::Result<()> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.run.lock().expect("no panic").insert(instance.to_owned(), runs);
        Ok(())
    }
}

/// The status of the answer to an order.
#[expect(
    clippy::disallowed_methods,
    reason = "the library of the receiver compares with the clock of the host"
)]
fn send(receiver: &Receiver<Instances>, kind: &str, order: i64, secret: &str) -> u16 {
    let body = json!({
        "type": kind,
        "data": { "organization": "acme", "order": order, "instances": [{ "provider_instance_id": "web-1" }] },
    })
    .to_string();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let now = i64::try_from(now).expect("a time");
    let signature =
        Webhook::new(secret).expect("a secret").sign("msg", now, body.as_bytes()).expect("signed");
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("webhook-id", "msg"), ("webhook-timestamp", &now.to_string()), ("webhook-signature", &signature)]
    {
        headers.insert(name, value.parse().expect("a value"));
    }
    receiver.handle(&headers, body.as_bytes()).as_u16()
}

#[test]
fn greatest_order_wins() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, instances) = (folder.path().join("orders.json"), Instances::default());
    let receiver = || Receiver::new(SECRET, instances.clone(), file.clone()).expect("a receiver");
    let first = receiver();
    let runs = || instances.run.lock().expect("no panic").get("web-1").copied();
    assert_eq!((send(&first, "billing.service.suspend", 5, SECRET), runs()), (200, Some(false)));
    assert_eq!((send(&first, "billing.service.resume", 7, SECRET), runs()), (200, Some(true)));
    // Late and repeated, also after a restart.
    assert_eq!((send(&first, "billing.service.suspend", 5, SECRET), runs()), (200, Some(true)));
    let second = receiver();
    assert_eq!((send(&second, "billing.service.suspend", 6, SECRET), runs()), (200, Some(true)));
    assert_eq!((send(&second, "billing.service.suspend", 8, SECRET), runs()), (200, Some(false)));
}

#[test]
fn failed_order_is_not_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let instances = Instances::default();
    let receiver =
        Receiver::new(SECRET, instances.clone(), folder.path().join("orders.json")).expect("a receiver");
    instances.fails.store(true, Ordering::Relaxed);
    assert_eq!(send(&receiver, "billing.service.suspend", 5, SECRET), 503);
    instances.fails.store(false, Ordering::Relaxed);
    assert_eq!(send(&receiver, "billing.service.suspend", 5, SECRET), 200);
    assert_eq!(instances.run.lock().expect("no panic").get("web-1"), Some(&false));
    assert_eq!(send(&receiver, "billing.test", 0, SECRET), 204);
    assert_eq!(send(&receiver, "billing.service.resume", 9, "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"), 401);
}
