//! The SQL that differs between the two databases: instants, which are parameters in microseconds since 1970, and lists in one column.

use sea_orm::DbBackend;

use crate::transaction::SQLITE_NOW;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    pub(crate) fn of(backend: DbBackend) -> Self {
        if backend == DbBackend::Sqlite { Self::Sqlite } else { Self::Postgres }
    }

    pub(crate) fn backend(self) -> DbBackend {
        match self {
            Self::Sqlite => DbBackend::Sqlite,
            Self::Postgres => DbBackend::Postgres,
        }
    }

    pub(crate) fn is_sqlite(self) -> bool {
        self == Self::Sqlite
    }

    /// Returns the expression for the current time of the database.
    pub(crate) fn now(self) -> &'static str {
        match self {
            Self::Sqlite => SQLITE_NOW,
            Self::Postgres => "now()",
        }
    }

    /// Returns the expression for the time that every process follows, in microseconds since 1970: NULL if the database uses the
    /// clock of the process's own host.
    pub(crate) fn clock(self) -> String {
        match self {
            Self::Sqlite => "NULL".to_owned(),
            Self::Postgres => self.micros(self.now()),
        }
    }

    /// Returns the expression for the instant that is `parameter` milliseconds from now.
    pub(crate) fn in_ms(self, parameter: &str) -> String {
        match self {
            Self::Sqlite => format!("{} + {parameter} * 1000", self.now()),
            Self::Postgres => format!("now() + {parameter} * interval '1 millisecond'"),
        }
    }

    /// Returns the expression for the instant that is `parameter` microseconds after 1970.
    pub(crate) fn at(self, parameter: &str) -> String {
        match self {
            Self::Sqlite => parameter.to_owned(),
            Self::Postgres => format!("timestamptz 'epoch' + {parameter} * interval '1 microsecond'"),
        }
    }

    /// Returns the expression for the microseconds since 1970 of `instant`.
    pub(crate) fn micros(self, instant: &str) -> String {
        match self {
            Self::Sqlite => instant.to_owned(),
            Self::Postgres => format!("(extract(epoch FROM {instant}) * 1000000)::bigint"),
        }
    }

    /// Returns a parameter or a column with an explicit type for PostgreSQL.
    pub(crate) fn cast(self, value: &str, kind: &str) -> String {
        match self {
            Self::Sqlite => value.to_owned(),
            Self::Postgres => format!("{value}::{kind}"),
        }
    }

    /// Returns the columns of a job's state and of its claim hint.
    pub(crate) fn state_columns(self, table: &str) -> String {
        let micros = |column: &str| format!("{} AS {column}", self.micros(&format!("{table}{column}")));
        let instants =
            ["cursor_at", "retry_scheduled_at", "retry_not_before", "next_at", "late_at", "stuck_at"];
        format!(
            "{}, {} AS failed_attempts, {table}schedule, {table}replaced_schedules",
            instants.map(micros).join(", "),
            self.cast(&format!("{table}failed_attempts"), "bigint"),
        )
    }

    /// Returns a subquery for the pauses `p` that meet `condition`, as one text for [`pauses`](crate::rows::pauses).
    pub(crate) fn pauses(self, condition: &str) -> String {
        let (since, until) = (self.micros("p.paused_at"), self.micros("p.resumed_at"));
        let columns = format!("p.job, {since}, {until}, p.paused_by, p.reason");
        self.list(&columns, "scheduler_pauses p", condition)
    }

    /// Returns a subquery for the requests `q` that meet `condition`, as one text for [`requests`](crate::rows::requests).
    pub(crate) fn requests(self, condition: &str) -> String {
        let (scheduled, at) = (self.micros("q.scheduled_at"), self.micros("q.requested_at"));
        let columns =
            format!("q.id, q.job, q.kind, {scheduled}, q.fencing_token, {at}, q.requested_by, q.reason");
        self.list(&columns, "scheduler_requests q", condition)
    }

    fn list(self, columns: &str, table: &str, condition: &str) -> String {
        match self {
            Self::Sqlite => {
                format!("(SELECT json_group_array(json_array({columns})) FROM {table} WHERE {condition})")
            }
            Self::Postgres => {
                format!("(SELECT json_agg(json_build_array({columns}))::text FROM {table} WHERE {condition})")
            }
        }
    }
}
