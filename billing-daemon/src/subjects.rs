//! Instances and organizations as operators name them: by id, by label where it is unique, by slug or by name.

use std::collections::BTreeMap;

use billing_jobs::billing::Scope;
use billing_store::{columns, query_fleet, statement};
use sea_orm::{DatabaseConnection, DbBackend, DbErr};
use uuid::Uuid;

use crate::exit::{Exit, Failure};

/// More candidates for one name than these are not listed.
const LISTED: usize = 10;

/// A row that a name may mean: an instance or an organization, with its id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    is_instance: bool,
    id: String,
}

/// Looks up the instances and organizations with these names.
///
/// # Errors
/// A name has no match, or several.
pub(crate) async fn resolve(db: &DatabaseConnection, names: &[String]) -> Result<Scope, Failure> {
    let mut scope = Scope::default();
    for name in names {
        let found =
            find(db, name).await.map_err(|error| Failure::database("look up the instances", &error))?;
        let subject = only_one(name, &found)?;
        let ids = if subject.is_instance { &mut scope.instances } else { &mut scope.organizations };
        if !ids.contains(&subject.id) {
            ids.push(subject.id);
        }
    }
    Ok(scope)
}

/// Looks up the organization with this name; returns its id.
///
/// # Errors
/// The name has no match, or several.
pub(crate) async fn organization(db: &DatabaseConnection, name: &str) -> Result<String, Failure> {
    find_organization(db, name).await?.map_or_else(|| Err(unknown(name)), Ok)
}

/// Looks up the organization with this name; returns its id, or none if the name has no match.
///
/// # Errors
/// The name has several matches.
pub(crate) async fn find_organization(
    db: &DatabaseConnection,
    name: &str,
) -> Result<Option<String>, Failure> {
    let mut found =
        find(db, name).await.map_err(|error| Failure::database("look up the organization", &error))?;
    found.retain(|subject, _| !subject.is_instance);
    if found.is_empty() { Ok(None) } else { only_one(name, &found).map(|subject| Some(subject.id)) }
}

/// Instances that exist or are held, and organizations; each with its label or name.
async fn find(db: &DatabaseConnection, name: &str) -> Result<BTreeMap<Subject, String>, DbErr> {
    // An id is compared as the columns have it, so that their indexes find it in a large fleet.
    let id = name.parse::<Uuid>().ok().map(|id| id.to_string());
    let is = |column: &str, names: &str| match (&id, db.get_database_backend()) {
        (None, _) => names.to_owned(),
        (Some(_), DbBackend::Sqlite) => format!("{column} = $1"),
        (Some(_), _) => format!("{column} = $1::uuid"),
    };
    let sql = format!(
        "SELECT 1 AS is_instance, CAST(id AS text) AS id, label AS name FROM vps_instances WHERE {}
         UNION
         SELECT 1, CAST(instance_id AS text), label FROM billing_holds WHERE closed_at IS NULL AND {}
         UNION
         SELECT 0, CAST(id AS text), name FROM organizations WHERE {}
         LIMIT {}",
        is("id", "label = $1"),
        is("instance_id", "label = $1"),
        is("id", "(slug = $1 OR name = $1)"),
        2 * LISTED
    );
    let name = id.unwrap_or_else(|| name.to_owned());
    let statement = statement(db, &sql, [name.into()]);
    let mut found = BTreeMap::new();
    for row in query_fleet(db, statement).await? {
        let subject =
            Subject { is_instance: row.try_get::<i32>("", "is_instance")? == 1, id: row.try_get("", "id")? };
        found.insert(subject, columns::lossy(&row, "name"));
    }
    Ok(found)
}

fn unknown(name: &str) -> Failure {
    let message = format!("no instance and no organization is named {name:?}: use an id, a label, or a slug");
    Failure::new(Exit::Usage, message)
}

fn only_one(name: &str, found: &BTreeMap<Subject, String>) -> Result<Subject, Failure> {
    let mut subjects = found.keys();
    match (subjects.next(), subjects.next()) {
        (Some(subject), None) => Ok(subject.clone()),
        (None, _) => Err(unknown(name)),
        (Some(_), Some(_)) => {
            let describe = |(subject, name): (&Subject, &String)| {
                let kind = if subject.is_instance { "instance" } else { "organization" };
                format!("{kind} {} ({name:?})", subject.id)
            };
            let candidates: Vec<_> = found.iter().take(LISTED).map(describe).collect();
            let more = if found.len() > LISTED { ", ..." } else { "" };
            let message = format!("{name:?} is ambiguous, use an id: {}{more}", candidates.join(", "));
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_must_have_exactly_one_match() {
        let subject =
            |is_instance, id: &str| (Subject { is_instance, id: id.to_owned() }, "web\n1".to_owned());
        let one = BTreeMap::from([subject(true, "a")]);
        assert_eq!(only_one("web", &one).map(|subject| subject.id).ok().as_deref(), Some("a"));
        for (found, message) in [
            (BTreeMap::new(), "no instance and no organization is named \"web\""),
            (
                BTreeMap::from([subject(true, "a"), subject(false, "b")]),
                "\"web\" is ambiguous, use an id: organization b (\"web\\n1\"), instance a (\"web\\n1\")",
            ),
        ] {
            let failure = only_one("web", &found).expect_err("not one match");
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.starts_with(message), "{}", failure.message);
        }
    }
}
