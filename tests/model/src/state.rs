//! One state of the model: what the database holds, and what each process remembers.

/// How many daemons a state has room for.
pub const MAX_DAEMONS: usize = 3;
/// How many instances a state has room for.
pub const MAX_INSTANCES: usize = 2;
/// How many hours a state has room for.
pub const MAX_HOURS: u8 = 8;

/// Hours since the instances were created.
pub type Hour = u8;

/// The number of a claim. Claims are only ever compared, so a state keeps their order and forgets the gaps.
pub type Number = u8;

/// Everything, between two steps of any process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// How many hours have passed.
    pub now: Hour,
    /// The database that every process uses.
    pub database: Database,
    /// The database that answers after a fail-over: it may lag behind.
    pub replica: Option<Database>,
    /// Each daemon; which is which makes no difference, so they are kept in order.
    pub daemons: [Daemon; MAX_DAEMONS],
    /// A transaction whose COMMIT was sent, and whose daemon does not know what became of it.
    pub in_flight: Option<Charge>,
    /// The panel's own biller.
    pub panel: Panel,
}

/// What is committed, and (the last three) what a witness would know who sees everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Database {
    /// The number in the lease row: who may work. Its expiry is not here, because it may have expired at any time.
    pub lease: Number,
    /// The number in the fencing row: whose work may be committed.
    pub fencing_token: Number,
    /// Whether billing of ours worked within `hand-back-after`.
    pub worked: bool,
    /// What the one wallet holds. An hour costs 1.
    pub balance: i8,
    /// The instances of that wallet.
    pub instances: [Instance; MAX_INSTANCES],
    /// How often an hour was charged.
    pub taken: i8,
    /// The newest number under which anything was committed, or 0 if no process with an older one is left.
    pub newest_commit: Number,
    /// Whether a process has committed under an older token than that.
    pub fell: bool,
}

/// An instance's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Instance {
    /// The panel's `last_billed_at`, and the watermark of its meter.
    pub mark: Mark,
    /// In the ledger: the hours at which a charge begins, one bit each. This is the unique key.
    pub starts: u8,
    /// Who has taken the money for each hour: two bits each, see [`Payer`].
    pub paid: u16,
}

/// Up to where an instance is billed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    /// In the panel's eyes: `last_billed_at`.
    pub anchor: Hour,
    /// In ours: `billed_through`.
    pub meter: Hour,
}

impl Mark {
    /// Where the next charge begins.
    #[must_use]
    pub fn start(self) -> Hour {
        self.anchor.max(self.meter)
    }
}

/// What charged an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payer {
    /// The hour is not paid yet.
    None,
    /// A daemon charged it.
    Daemon,
    /// The panel debited it.
    Panel,
    /// It was charged more than once.
    Several,
}

impl Instance {
    /// Who was paid for `hour`.
    #[must_use]
    pub fn payer(&self, hour: Hour) -> Payer {
        match self.paid >> (2 * hour) & 3 {
            0 => Payer::None,
            1 => Payer::Daemon,
            2 => Payer::Panel,
            _ => Payer::Several,
        }
    }

    /// Notes that `payer` has taken the money for `hour`.
    pub fn pay(&mut self, hour: Hour, payer: Payer) {
        let payer = if self.payer(hour) == Payer::None { payer } else { Payer::Several };
        self.paid |= (payer as u16) << (2 * hour);
    }
}

/// A daemon's place in its turn. Between any two steps it may pause for as long as it likes, and it may die in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Daemon {
    /// Without a claim: just started, or between two turns.
    Idle,
    /// It has claimed the lease row and has still to raise the fencing row.
    Claimed(Number),
    /// It believes that it may work; no transaction is open.
    Working(Run),
    /// Its transaction has begun with the check of its number.
    Begun(Run),
    /// The transaction has locked the wallet and knows what to write.
    Charging(Run, Charge),
}

/// A daemon's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Run {
    /// The fencing token of its claim.
    pub number: Number,
    /// Hours that ended by then are due. Read once, when the run began.
    pub as_of: Hour,
    /// What was read before any transaction, by a daemon that does not read again under the lock.
    pub list: [Mark; MAX_INSTANCES],
}

/// What one transaction of a daemon is about to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Charge {
    /// The claim under which it began.
    pub number: Number,
    /// For which instance.
    pub instance: u8,
    /// What was read of it.
    pub read: Mark,
    /// Hours that ended by then are charged.
    pub until: Hour,
}

/// The panel's biller, in its own words: list what is due, then one after the other debit, cycle, `last_billed_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Panel {
    /// Between two runs, or dead.
    Idle,
    /// It goes through the list that it has read.
    Listed(List),
    /// The debit's transaction has read the balance, without a lock.
    Debiting(List, Debit),
    /// It has written wallet and ledger row, and holds the locks of both (and of what the trigger touched).
    Posting(List, Debit, Posting),
    /// The debit is committed; cycle and `last_billed_at` are not written yet.
    Debited(List, Debit),
}

/// What the panel believes to be due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct List {
    /// One bit for each instance still to do.
    pub due: u8,
    /// Each one's `last_billed_at` as it was read.
    pub anchors: [Hour; MAX_INSTANCES],
}

/// A debit of the panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Debit {
    /// For which instance.
    pub instance: u8,
    /// How many hours.
    pub hours: u8,
    /// What the wallet held when it was read.
    pub balance: i8,
}

/// What the panel's open transaction will change in addition to its own rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Posting {
    /// The first hour that the debit pays for.
    pub start: Hour,
    /// What it does to the fencing row.
    pub fencing_token: FencingRowLock,
}

/// What the panel's open transaction does to the fencing row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FencingRowLock {
    /// It has no lock on the row.
    None,
    /// It keeps others from raising it.
    Shared,
    /// It raises it, to a number that was greater than every claim.
    Raised(Number),
}

impl Daemon {
    /// The number under which it works, or is about to.
    #[must_use]
    pub fn number(&self) -> Option<Number> {
        match self {
            Self::Idle => None,
            Self::Claimed(number) => Some(*number),
            Self::Working(run) | Self::Begun(run) | Self::Charging(run, _) => Some(run.number),
        }
    }

    fn renumber(&mut self, new: impl Fn(Number) -> Number) {
        match self {
            Self::Idle => {}
            Self::Claimed(number) => *number = new(*number),
            Self::Working(run) | Self::Begun(run) => run.number = new(run.number),
            Self::Charging(run, charge) => {
                run.number = new(run.number);
                charge.number = new(charge.number);
            }
        }
    }
}

impl Database {
    /// An empty one with `balance` in the wallet.
    #[must_use]
    pub fn new(balance: i8) -> Self {
        Self {
            lease: 0,
            fencing_token: 0,
            worked: false,
            balance,
            instances: Default::default(),
            taken: 0,
            newest_commit: 0,
            fell: false,
        }
    }

    /// The number of the next claim: greater than those of both rows.
    #[must_use]
    pub fn next_number(&self) -> Number {
        self.lease.max(self.fencing_token) + 1
    }

    fn numbers(&self) -> u32 {
        1 << self.lease | 1 << self.fencing_token | 1 << self.newest_commit
    }

    fn renumber(&mut self, new: impl Fn(Number) -> Number) {
        self.lease = new(self.lease);
        self.fencing_token = new(self.fencing_token);
        self.newest_commit = new(self.newest_commit);
    }
}

impl State {
    /// The same state in the one form that all states like it share: daemons in order, numbers without gaps. It behaves
    /// alike, and it makes the states finite though claims, crashes and repetitions are not bounded.
    #[must_use]
    pub fn canonical(mut self) -> Self {
        let at_work = self.daemons.iter().filter_map(Daemon::number);
        let at_work =
            at_work.chain(self.in_flight.map(|charge| charge.number)).fold(0_u32, |set, n| set | 1 << n);
        for database in [Some(&mut self.database), self.replica.as_mut()].into_iter().flatten() {
            // No process is left that could commit under an older token.
            if at_work & ((1 << database.newest_commit) - 1) == 0 {
                database.newest_commit = 0;
            }
        }
        let posting = match &self.panel {
            Panel::Posting(_, _, Posting { fencing_token: FencingRowLock::Raised(number), .. }) => {
                1 << number
            }
            _ => 0,
        };
        let replica = self.replica.as_ref().map_or(0, Database::numbers);
        // 0 keeps its meaning.
        let used = 1 | at_work | posting | replica | self.database.numbers();
        let rank = |number: Number| {
            Number::try_from((used & ((1 << number) - 1)).count_ones()).unwrap_or(Number::MAX)
        };
        self.database.renumber(rank);
        if let Some(replica) = &mut self.replica {
            replica.renumber(rank);
        }
        for daemon in &mut self.daemons {
            daemon.renumber(rank);
        }
        if let Some(charge) = &mut self.in_flight {
            charge.number = rank(charge.number);
        }
        if let Panel::Posting(_, _, Posting { fencing_token: FencingRowLock::Raised(number), .. }) =
            &mut self.panel
        {
            *number = rank(*number);
        }
        self.daemons.sort_unstable();
        self
    }
}
