//! The steps that there are, and what each is called.

use crate::state::State;

/// A step. A daemon is named by its place in the state before the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The clock advances by one hour.
    HourEnds,
    /// Billing of ours has not worked for `hand-back-after`.
    HandBackTimePasses,
    /// A daemon claims the lease row, which is free or expired.
    Claim(usize),
    /// The second row of a claim; waits for transactions that hold it.
    Raise(usize),
    /// A transaction begins, with its check.
    Begin(usize),
    /// It locks the wallet and reads one instance.
    Read(usize, u8),
    /// Its COMMIT is answered.
    Commit(usize),
    /// Its COMMIT is sent and never answered: it may arrive or not, at any time.
    LoseAnswer(usize),
    /// It is rolled back, by whatever.
    RollBack(usize),
    /// A run ends well: `last_success_at` is set and the lease released.
    Finish(usize),
    /// A daemon dies. Another one starts sooner or later.
    Die(usize),
    /// A COMMIT whose sender is gone arrives.
    Arrive,
    /// It does not.
    Vanish,
    /// The panel reads its list.
    PanelLists,
    /// It reads the balance for the next one.
    PanelReads(u8),
    /// It writes the wallet and the ledger row, and the trigger has its say.
    PanelWrites,
    /// Its debit is committed.
    PanelCommits,
    /// Its debit is rolled back, by whatever.
    PanelRollsBack,
    /// Its second transaction: cycle and `last_billed_at`.
    PanelRecords,
    /// It has done its list.
    PanelEnds,
    /// The panel's process dies between two steps.
    PanelDies,
    /// The replica has everything.
    Replicate,
    /// The replica takes over; what it has not got is lost.
    FailOver,
}

impl Action {
    /// What it does, as a sentence about `before`.
    #[must_use]
    pub fn in_words(self, before: &State) -> String {
        let claim = |daemon: usize| match before.daemons[daemon].number() {
            Some(number) => format!("the daemon under claim {number}"),
            None => "a daemon".to_owned(),
        };
        match self {
            Self::HourEnds => format!("hour {} ends", before.now),
            Self::HandBackTimePasses => {
                "`hand-back-after` passes in which billing of ours does not work".to_owned()
            }
            Self::Claim(_) => format!("a daemon makes claim {}", before.database.next_number()),
            Self::Raise(daemon) => format!("{} makes it the newest, and its run begins", claim(daemon)),
            Self::Begin(daemon) => format!("{} begins a transaction", claim(daemon)),
            Self::Read(daemon, instance) => format!("{} locks and reads instance {instance}", claim(daemon)),
            Self::Commit(daemon) => format!("{} commits", claim(daemon)),
            Self::LoseAnswer(daemon) => format!("{} sends COMMIT and loses the connection", claim(daemon)),
            Self::RollBack(daemon) => format!("{} rolls back", claim(daemon)),
            Self::Finish(daemon) => format!("{} ends its run", claim(daemon)),
            Self::Die(daemon) => format!("{} dies", claim(daemon)),
            Self::Arrive => "the COMMIT in flight arrives".to_owned(),
            Self::Vanish => "the COMMIT in flight is lost".to_owned(),
            Self::PanelLists => "the panel lists what is due".to_owned(),
            Self::PanelReads(instance) => {
                format!(
                    "the panel turns to instance {instance} and reads a balance of {}",
                    before.database.balance
                )
            }
            Self::PanelWrites => "the panel writes the balance and its ledger row".to_owned(),
            Self::PanelCommits => "the panel commits its debit".to_owned(),
            Self::PanelRollsBack => "the panel rolls its debit back".to_owned(),
            Self::PanelRecords => "the panel writes cycle and last_billed_at".to_owned(),
            Self::PanelEnds => "the panel is through its list".to_owned(),
            Self::PanelDies => "the panel dies".to_owned(),
            Self::Replicate => "the replica catches up".to_owned(),
            Self::FailOver => "the replica takes over".to_owned(),
        }
    }
}
