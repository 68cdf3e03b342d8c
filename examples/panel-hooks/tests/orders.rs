//! The receiver ends in the wanted state, whatever is lost, repeated or late.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Write as _},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use http::HeaderMap;
use panel_hooks::{Provider, Receiver, read_instances};
use serde_json::{Value, json};
use standardwebhooks::Webhook;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[derive(Clone, Default)]
struct Instances {
    run: Arc<Mutex<BTreeMap<String, bool>>>,
    fails: Arc<AtomicBool>,
    /// The HTTP interface of the daemon.
    daemon: String,
}

impl Provider for Instances {
    fn set_running(&self, instance: &str, runs: bool) -> io::Result<()> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.run.lock().expect("no panic").insert(instance.to_owned(), runs);
        Ok(())
    }

    fn instances(&self, organization: &str) -> io::Result<Vec<String>> {
        read_instances(&self.daemon, organization)
    }
}

/// A daemon with these instances of `acme`, in pages of two. Returns its address.
fn daemon(instances: &'static [&'static str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // The whole request: what is not read would reset the connection.
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let path = request[0].split(' ').nth(1).expect("a path");
            let after =
                path.strip_prefix("/api/standings/acme/instances?after=").expect("of this organization");
            let page: Vec<Value> = instances
                .iter()
                .filter(|id| **id > after)
                .take(2)
                .map(|id| json!({ "id": id, "provider_instance_id": format!("vm-{id}"), "label": "" }))
                .collect();
            let body = json!(page).to_string();
            let length = body.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
                .expect("an answer");
        }
    });
    address
}

/// The status of the answer to an order.
fn send(receiver: &Receiver<Instances>, kind: &str, order: i64, secret: &str) -> u16 {
    let instances = json!([{ "id": "1", "provider_instance_id": "web-1", "label": "" }]);
    send_with(receiver, kind, order, secret, &instances)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the library of the receiver compares with the clock of the host"
)]
fn send_with(receiver: &Receiver<Instances>, kind: &str, order: i64, secret: &str, instances: &Value) -> u16 {
    let data = json!({ "organization": "acme", "order": order, "instances": instances });
    let body = json!({ "type": kind, "data": data }).to_string();
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

#[test]
fn unlisted_instances_are_read_in_pages() {
    let folder = tempfile::tempdir().expect("a folder");
    let instances = Instances { daemon: daemon(&["1", "2", "3", "4", "5"]), ..Instances::default() };
    let receiver =
        Receiver::new(SECRET, instances.clone(), folder.path().join("orders.json")).expect("a receiver");
    assert_eq!(send_with(&receiver, "billing.service.suspend", 5, SECRET, &Value::Null), 200);
    let run = instances.run.lock().expect("no panic");
    let expected = ["vm-1", "vm-2", "vm-3", "vm-4", "vm-5"].map(|instance| (instance.to_owned(), false));
    assert_eq!(*run, BTreeMap::from(expected));
}
