//! Receivers of what the prepaid policy sends: a web server that verifies signatures as its own library does, and a mail server.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use standardwebhooks::Webhook;

/// A server on a free port of this host, with a thread for each connection. It ends when this is dropped.
#[derive(Debug)]
struct Server {
    port: u16,
    ends: Arc<AtomicBool>,
}

impl Server {
    fn start(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("a bound port").port();
        let ends = Arc::new(AtomicBool::new(false));
        let (serve, is_over) = (Arc::new(serve), Arc::clone(&ends));
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let serve = Arc::clone(&serve);
                // A client that breaks off is not an error of the server.
                thread::spawn(move || serve(connection).ok());
            }
        });
        Self { port, ends }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An event as a receiver got it.
#[derive(Clone, Debug)]
pub struct Received {
    /// The header `webhook-id`.
    pub id: String,
    /// The text that was signed.
    pub text: String,
    /// The same as JSON.
    pub body: Value,
    /// How many secrets have signed it.
    pub signatures: usize,
}

impl Received {
    /// The type of the event.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.body["type"].as_str().expect("an event has a type")
    }
}

/// What a receiver answers.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: String,
    body: String,
}

impl Reply {
    /// An answer without a body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self { status, headers: String::new(), body: String::new() }
    }

    /// With this body.
    #[must_use]
    pub fn body(self, body: &str) -> Self {
        Self { body: body.to_owned(), ..self }
    }

    /// With this header.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        Self { headers: format!("{}{name}: {value}\r\n", self.headers), ..self }
    }
}

#[derive(Debug, Default)]
struct Inbox {
    received: Vec<Received>,
    refused: Vec<String>,
}

/// Decides how an event is answered; without an answer the connection is closed.
type Answer = dyn Fn(&Received) -> Option<Reply> + Send + Sync;

/// A web server that receives events. It accepts only those that one of its secrets has signed.
#[derive(Debug)]
pub struct WebhookReceiver {
    server: Server,
    inbox: Arc<Mutex<Inbox>>,
    replies: Arc<Mutex<VecDeque<Reply>>>,
}

impl WebhookReceiver {
    /// A receiver with this secret, which answers 200.
    #[must_use]
    pub fn start(secret: &str) -> Self {
        Self::answering(secret, |_| Some(Reply::status(200)))
    }

    /// A receiver with this secret, which answers each event so. It has the event before it answers.
    #[must_use]
    pub fn answering(
        secret: &str,
        answer: impl Fn(&Received) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let replies = Arc::new(Mutex::new(VecDeque::new()));
        let (verifier, entries) = (Webhook::new(secret).expect("a secret"), Arc::clone(&inbox));
        let next = Arc::clone(&replies);
        let answer = move |event: &Received| lock(&next).pop_front().or_else(|| answer(event));
        let server = Server::start(move |connection| receive(&connection, &verifier, &entries, &answer));
        Self { server, inbox, replies }
    }

    /// The address for events.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hooks", self.server.port)
    }

    /// Answers the next events so, one after the other.
    pub fn replies(&self, replies: impl IntoIterator<Item = Reply>) {
        lock(&self.replies).extend(replies);
    }

    /// The events so far.
    ///
    /// # Panics
    /// If one was not signed.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        let inbox = lock(&self.inbox);
        assert_eq!(inbox.refused, [""; 0], "every event is signed");
        inbox.received.clone()
    }

    /// The types of the events so far.
    #[must_use]
    pub fn kinds(&self) -> Vec<String> {
        self.received().iter().map(|event| event.kind().to_owned()).collect()
    }
}

fn receive(
    connection: &TcpStream,
    verifier: &Webhook,
    inbox: &Mutex<Inbox>,
    answer: &Answer,
) -> io::Result<()> {
    let mut reader = BufReader::new(connection);
    let mut headers = HeaderMap::new();
    let mut line = String::new();
    reader.read_line(&mut line)?;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        if !line.ends_with('\n') {
            // The client broke off.
            return Ok(());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let header = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value.trim()));
        if let (Ok(name), Ok(value)) = header {
            headers.insert(name, value);
        }
    }
    let text =
        |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let mut body = vec![0; text("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let reply = if let Err(error) = verifier.verify(&body, &headers) {
        lock(inbox).refused.push(error.to_string());
        Some(Reply::status(401))
    } else {
        let signed = String::from_utf8_lossy(&body).into_owned();
        let event = Received {
            id: text("webhook-id"),
            body: serde_json::from_str(&signed).unwrap_or_default(),
            text: signed,
            signatures: text("webhook-signature").split(' ').count(),
        };
        lock(inbox).received.push(event.clone());
        answer(&event)
    };
    let Some(Reply { status, headers, body }) = reply else { return Ok(()) };
    let length = body.len();
    let mut connection = connection;
    write!(
        connection,
        "HTTP/1.1 {status} Status\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// A mail as the server got it.
#[derive(Clone, Debug)]
pub struct Mail {
    /// The address of the recipient.
    pub to: String,
    /// The header and the body, as they were transferred.
    pub data: String,
}

impl Mail {
    /// The value of a header that is on one line.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let prefix = format!("{name}: ");
        self.data.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Mailbox {
    mails: Vec<Mail>,
    refusals: VecDeque<&'static str>,
    always: Option<&'static str>,
}

/// Decides how a mail is answered; without an answer the connection is closed. A line that begins with 250 accepts it.
type MailAnswer = dyn Fn(&Mail) -> Option<&'static str> + Send + Sync;

/// A mail server that keeps what it gets.
#[derive(Debug)]
pub struct MailServer {
    server: Server,
    mailbox: Arc<Mutex<Mailbox>>,
}

impl Default for MailServer {
    fn default() -> Self {
        Self::start()
    }
}

impl MailServer {
    /// A server that accepts every mail.
    #[must_use]
    pub fn start() -> Self {
        Self::answering(|_| Some("250 kept"))
    }

    /// A server that answers each mail so, once its text is complete.
    #[must_use]
    pub fn answering(answer: impl Fn(&Mail) -> Option<&'static str> + Send + Sync + 'static) -> Self {
        let mailbox = Arc::new(Mutex::new(Mailbox::default()));
        let entries = Arc::clone(&mailbox);
        Self { server: Server::start(move |connection| converse(&connection, &entries, &answer)), mailbox }
    }

    /// The address of the server.
    #[must_use]
    pub fn url(&self) -> String {
        format!("smtp://127.0.0.1:{}", self.server.port)
    }

    /// Refuses the recipients of the next mails with these lines.
    pub fn refuses(&self, lines: impl IntoIterator<Item = &'static str>) {
        lock(&self.mailbox).refusals.extend(lines);
    }

    /// Refuses every recipient with this line, or accepts them again.
    pub fn refuses_all(&self, line: Option<&'static str>) {
        lock(&self.mailbox).always = line;
    }

    /// The mails so far.
    #[must_use]
    pub fn mails(&self) -> Vec<Mail> {
        lock(&self.mailbox).mails.clone()
    }

    /// The subjects of the mails so far.
    #[must_use]
    pub fn subjects(&self) -> Vec<String> {
        self.mails().iter().map(|mail| mail.header("Subject").to_owned()).collect()
    }
}

fn converse(connection: &TcpStream, mailbox: &Mutex<Mailbox>, answer: &MailAnswer) -> io::Result<()> {
    let mut reader = BufReader::new(connection);
    let mut writer = connection;
    let mut say = |line: &str| write!(writer, "{line}\r\n");
    say("220 mail.test ESMTP")?;
    let (mut line, mut to) = (String::new(), String::new());
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let command = line.trim_end().to_ascii_uppercase();
        if command.starts_with("RCPT TO:") {
            let refusal = {
                let mut mailbox = lock(mailbox);
                mailbox.refusals.pop_front().or(mailbox.always)
            };
            let address = line.split(['<', '>']).nth(1).unwrap_or_default();
            address.clone_into(&mut to);
            say(refusal.unwrap_or("250 ok"))?;
        } else if command == "DATA" {
            say("354 go ahead")?;
            let mut data = String::new();
            loop {
                line.clear();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                if line == ".\r\n" {
                    break;
                }
                data.push_str(line.strip_prefix('.').unwrap_or(&line));
            }
            let mail = Mail { to: to.clone(), data };
            let Some(answer) = answer(&mail) else { return Ok(()) };
            if answer.starts_with("250") {
                lock(mailbox).mails.push(mail);
            }
            say(answer)?;
        } else if command == "QUIT" {
            return say("221 bye");
        } else {
            say("250 ok")?;
        }
    }
}
