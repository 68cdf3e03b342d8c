//! Whose instances a transaction works on, and the next of these ranges.

use sea_orm::{DbBackend, DbErr, Statement, Value};

use super::{
    BillingError,
    id::{self, Id},
    read::LoadedBatch,
    run_context::RunContext,
};
use crate::period::Micros;
use billing_store::statement;

/// The instances of one transaction.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) owners: Owners,
    /// Of these, only the instances with these ids.
    pub(super) only: Option<Vec<Id>>,
    /// Why the database refused them, if it did: they are held.
    pub(super) refused: Option<String>,
}

/// Whose instances a transaction works on.
#[derive(Clone, Debug)]
pub(super) enum Owners {
    /// The organizations from the first to the last of a range, in the form of the database: text, on SQLite bytes.
    Range { first: Value, last: Value },
    /// The instances without an organization, which some panels allow. They are held.
    Missing,
}

impl Batch {
    pub(super) fn of(owners: Owners) -> Self {
        Self { owners, only: None, refused: None }
    }

    /// These instances of one organization.
    pub(super) fn of_organization(organization: &Id, instances: Vec<Id>, backend: DbBackend) -> Self {
        let end = || match backend {
            DbBackend::Sqlite => Value::from(organization.to_string().into_bytes()),
            _ => Value::from(organization.to_string()),
        };
        let owners = Owners::Range { first: end(), last: end() };
        Self { only: Some(instances), ..Self::of(owners) }
    }

    /// The last organization of its range.
    pub(super) fn last(&self) -> Option<Value> {
        match &self.owners {
            Owners::Range { last, .. } => Some(last.clone()),
            Owners::Missing => None,
        }
    }

    /// The statement that locks the wallets, if there are any, and the one that reads the instances.
    pub(super) fn statements(&self, context: &RunContext<'_>) -> (Option<Statement>, Statement) {
        let (sql, db) = (context.sql, context.db);
        let as_of = Value::from(context.as_of);
        let Owners::Range { first, last } = &self.owners else {
            return (None, statement(db, &sql.read_unowned, [as_of]));
        };
        let range = [first.clone(), last.clone()];
        let lock = statement(db, &sql.lock_wallets, range.clone());
        let values = [as_of].into_iter().chain(range);
        let due = match &self.only {
            None => statement(db, &sql.read_due, values),
            Some(only) => statement(db, &sql.read_due_of, values.chain([id::list(only)])),
        };
        (Some(lock), due)
    }

    /// Drops the instances that are not part of this batch, where the statement cannot.
    pub(super) fn restrict(&self, mut loaded: LoadedBatch) -> LoadedBatch {
        if let (Owners::Missing, Some(only)) = (&self.owners, &self.only) {
            loaded.instances.retain(|instance| only.contains(&instance.id));
        }
        loaded
    }
}

/// Returns the organizations after `after` that have about `size` instances to check, if there are any.
pub(super) async fn next_range(
    context: &RunContext<'_>,
    after: Option<Value>,
    size: u32,
) -> Result<Option<Batch>, BillingError> {
    const DOING: &str = "find the next organizations";
    let sqlite = context.panel.backend == DbBackend::Sqlite;
    let sql = &context.sql.next_organizations;
    let (sql, after) = match after {
        Some(after) => (sql.clone(), after),
        None => (sql.replace("organization_id > ", "organization_id >= "), smallest_id(sqlite)),
    };
    let as_of: Micros = context.as_of;
    let row = context.read_one(DOING, &sql, [as_of.into(), after, i64::from(size).into()]).await?;
    let ends = || -> Result<Option<(Value, Value)>, DbErr> {
        let Some(row) = row else { return Ok(None) };
        let end = |name| -> Result<Option<Value>, DbErr> {
            if sqlite {
                Ok(row.try_get::<Option<Vec<u8>>>("", name)?.map(Value::from))
            } else {
                Ok(row.try_get::<Option<String>>("", name)?.map(Value::from))
            }
        };
        Ok(end("first")?.zip(end("last")?))
    };
    let ends = ends().map_err(BillingError::database(DOING))?;
    Ok(ends.map(|(first, last)| Batch::of(Owners::Range { first, last })))
}

/// Returns whether there are instances without an organization.
pub(super) async fn unowned_exist(context: &RunContext<'_>) -> Result<bool, BillingError> {
    let sql = "SELECT 1 AS found FROM vps_instances WHERE organization_id IS NULL LIMIT 1";
    Ok(context.read_one("find instances without an organization", sql, []).await?.is_some())
}

fn smallest_id(sqlite: bool) -> Value {
    if sqlite { Vec::<u8>::new().into() } else { Id::NONE.to_string().into() }
}
