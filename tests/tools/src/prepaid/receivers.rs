//! The panel that carries out orders, and the mail server of the customers. Both fail as they are directed to.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use billing_test_support::{Mail, MailServer, Received, Reply, WebhookReceiver};
use chrono::{DateTime, Utc};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{sync::watch, time::sleep};
use uuid::Uuid;

use super::record::{MailReceipt, OrderReceipt, Record};
use crate::faults::fleet::Micros;

/// The secret that signs the orders.
pub(super) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SLOW_MS: std::ops::Range<u64> = 100..1_500;
const PERIOD_MS: std::ops::Range<u64> = 300..4_000;

/// How a receiver behaves for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Works,
    /// Each event is answered in another way.
    Varies,
    /// Nothing is accepted.
    Fails,
    /// Everything is accepted late.
    Slow,
}

impl Mood {
    const ALL: [Self; 4] = [Self::Works, Self::Varies, Self::Fails, Self::Slow];
}

/// How one event is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaction {
    Accept,
    /// It is accepted, and the answer is lost.
    AcceptInSilence,
    AcceptSlowly,
    /// It is begun, or may be accepted later.
    Later,
    Drop,
    Fail,
    /// It is never accepted.
    Reject,
}

/// The mood of one receiver and its random choices.
#[derive(Debug)]
struct Temper {
    mood: AtomicU8,
    rng: Mutex<StdRng>,
}

impl Temper {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { mood: AtomicU8::new(0), rng: Mutex::new(StdRng::seed_from_u64(seed)) })
    }

    fn set(&self, mood: Mood) {
        let place = Mood::ALL.iter().position(|known| *known == mood).unwrap_or_default();
        self.mood.store(u8::try_from(place).unwrap_or_default(), Ordering::SeqCst);
    }

    fn reaction(&self) -> Reaction {
        match Mood::ALL[usize::from(self.mood.load(Ordering::SeqCst))] {
            Mood::Works => Reaction::Accept,
            Mood::Fails => Reaction::Fail,
            Mood::Slow => Reaction::AcceptSlowly,
            Mood::Varies => {
                match self.rng.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..100) {
                    0..35 => Reaction::Accept,
                    35..47 => Reaction::AcceptInSilence,
                    47..60 => Reaction::AcceptSlowly,
                    60..72 => Reaction::Later,
                    72..82 => Reaction::Drop,
                    82..97 => Reaction::Fail,
                    _ => Reaction::Reject,
                }
            }
        }
    }

    /// Waits as a slow receiver does.
    fn linger(&self) {
        let ms = self.rng.lock().unwrap_or_else(PoisonError::into_inner).random_range(SLOW_MS);
        thread::sleep(Duration::from_millis(ms));
    }
}

/// The receivers of a campaign.
#[derive(Debug)]
pub(super) struct Receivers {
    pub(super) panel: WebhookReceiver,
    pub(super) mails: MailServer,
    record: Arc<Record>,
    tempers: [Arc<Temper>; 2],
}

impl Receivers {
    pub(super) fn start(record: &Arc<Record>, seed: u64) -> Self {
        let tempers = [Temper::new(seed.wrapping_add(10)), Temper::new(seed.wrapping_add(11))];
        let [of_panel, of_mails] = tempers.clone();
        let (for_panel, for_mails) = (Arc::clone(record), Arc::clone(record));
        let panel = WebhookReceiver::answering(SECRET, move |event| order(&for_panel, &of_panel, event));
        let mails = MailServer::answering(move |mail| keep(&for_mails, &of_mails, mail));
        Self { panel, mails, record: Arc::clone(record), tempers }
    }

    /// Accepts everything late from here on.
    pub(super) fn slow_down(&self) {
        self.tempers.iter().for_each(|temper| temper.set(Mood::Slow));
    }

    /// Changes the moods until it is stopped; then both work.
    pub(super) async fn vary(&self, seed: u64, stop: &watch::Receiver<bool>) {
        let mut rng = StdRng::seed_from_u64(seed);
        while !*stop.borrow() {
            let began = Instant::now();
            let moods = [(); 2].map(|()| Mood::ALL[rng.random_range(0..Mood::ALL.len())]);
            for (temper, mood) in self.tempers.iter().zip(moods) {
                temper.set(mood);
            }
            sleep(Duration::from_millis(rng.random_range(PERIOD_MS))).await;
            if moods[0] == Mood::Fails {
                // An answer that was chosen before the change may follow after it.
                let until = Instant::now() + Duration::from_millis(SLOW_MS.end);
                self.record.entries().panel_failures.push((began, until));
            }
        }
        self.tempers.iter().for_each(|temper| temper.set(Mood::Works));
    }
}

/// Carries out an order, or does not.
fn order(record: &Record, temper: &Temper, event: &Received) -> Option<Reply> {
    let generation = record.generation();
    let reaction = temper.reaction();
    if reaction == Reaction::AcceptSlowly {
        temper.linger();
    }
    let accepted = matches!(reaction, Reaction::Accept | Reaction::AcceptInSilence | Reaction::AcceptSlowly);
    let reply = match reaction {
        Reaction::Accept | Reaction::AcceptSlowly => Some(Reply::status(200)),
        Reaction::AcceptInSilence | Reaction::Drop => None,
        Reaction::Later => Some(Reply::status(202)),
        Reaction::Fail | Reaction::Reject => Some(Reply::status(503).header("Retry-After", "60")),
    };
    let data = &event.body["data"];
    let time = |text: &serde_json::Value| micros(text.as_str().unwrap_or_default());
    let notices = data["notices"].as_array().cloned().unwrap_or_default();
    let receipt = OrderReceipt {
        id: event.id.clone(),
        organization: data["organization"]
            .as_str()
            .and_then(|id| Uuid::parse_str(id).ok())
            .unwrap_or_default(),
        number: data["order"].as_i64().unwrap_or_default(),
        suspends: event.kind() == "billing.service.suspend",
        decided: time(&event.body["timestamp"]),
        notices: notices
            .iter()
            .map(|notice| {
                let level = notice["level"].as_i64().and_then(|level| i32::try_from(level).ok());
                (level.unwrap_or_default(), time(&notice["delivered_at"]))
            })
            .collect(),
        generation,
        at: Instant::now(),
        accepted,
        answered: accepted && reply.is_some(),
    };
    record.entries().orders.push(receipt);
    reply
}

/// Keeps a mail, or does not.
fn keep(record: &Record, temper: &Temper, mail: &Mail) -> Option<&'static str> {
    let reaction = temper.reaction();
    if reaction == Reaction::AcceptSlowly {
        temper.linger();
    }
    let reply = match reaction {
        Reaction::Accept | Reaction::AcceptSlowly => Some("250 kept"),
        Reaction::AcceptInSilence | Reaction::Drop => None,
        Reaction::Later | Reaction::Fail => Some("451 later"),
        Reaction::Reject => Some("550 never"),
    };
    let accepted = matches!(reaction, Reaction::Accept | Reaction::AcceptInSilence | Reaction::AcceptSlowly);
    let id = mail.header("Message-ID").trim_start_matches('<').split('@').next().unwrap_or_default();
    let receipt = MailReceipt {
        id: id.to_owned(),
        at: record.clock.earliest(),
        accepted,
        answered: accepted && reply.is_some(),
        rejected: reaction == Reaction::Reject,
    };
    record.entries().mails.push(receipt);
    reply
}

/// The time of an event; the earliest one if it has none.
pub(super) fn micros(text: &str) -> Micros {
    text.parse::<DateTime<Utc>>().map_or(Micros::MIN, |at| at.timestamp_micros())
}
