//! What exists and is most like an unknown name or id, among its neighbours in the order of an index.

use billing_store::columns;
use sea_orm::DbBackend;
use uuid::Uuid;

use super::{problem::Problem, visit::Visit};
use crate::{config::closest, subjects};

/// How many slugs before and after an unknown one are compared with it.
const NEIGHBOURS: u32 = 20;
/// The fewest characters of which a slug may be the continuation.
const MIN_SLUG: usize = 3;
/// Fewer common digits make no id similar: the first eight of a run are the minute of its start.
const MIN_DIGITS: usize = 8;

/// Returns the id of the organization that an operator names by its id, slug or name.
pub(super) async fn organization(visit: &Visit, name: &str) -> Result<String, Problem> {
    if let Some(id) = subjects::find_organization(visit.db(), name).await? {
        return Ok(id);
    }
    if let Some(id) = similar_id(visit, "organizations", name).await? {
        return Err(Problem::unknown("organization", name, Some((&id, format!("wallets/{id}")))));
    }
    // As panels derive a slug from a name.
    let dashed = |c: char| if c.is_alphanumeric() { c } else { '-' };
    let typed: String = name.to_lowercase().chars().map(dashed).collect();
    let columns = "CAST(id AS text) AS id, slug FROM organizations";
    let sql = format!(
        "SELECT * FROM (SELECT {columns} WHERE slug >= $1 ORDER BY slug LIMIT {NEIGHBOURS}) AS later UNION ALL
         SELECT * FROM (SELECT {columns} WHERE slug < $1 ORDER BY slug DESC LIMIT {NEIGHBOURS}) AS earlier"
    );
    let near = visit
        .rows("look up the organization", &sql, [(&*typed).into()], |row| {
            Ok((columns::lossy(row, "slug"), columns::lossy(row, "id")))
        })
        .await?;
    let continued = near.iter().map(|(slug, _)| &**slug).find(|slug| slug.starts_with(&typed));
    let similar = continued
        .filter(|_| typed.len() >= MIN_SLUG)
        .or_else(|| closest(&typed, near.iter().map(|(slug, _)| &**slug)));
    let similar = similar.and_then(|slug| near.iter().find(|(known, _)| known == slug));
    Err(Problem::unknown("organization", name, similar.map(|(slug, id)| (&**slug, format!("wallets/{id}")))))
}

/// Returns the id in `table` that has the most first digits in common with `text`.
pub(super) async fn similar_id(visit: &Visit, table: &str, text: &str) -> Result<Option<String>, Problem> {
    let typed = digits(text);
    let lowest = Uuid::parse_str(&format!("{typed:0<32}")).ok().filter(|_| typed.len() >= MIN_DIGITS);
    let Some(lowest) = lowest else { return Ok(None) };
    let id = if visit.db().get_database_backend() == DbBackend::Sqlite { "$1" } else { "$1::uuid" };
    let column = format!("CAST(id AS text) AS id FROM {table}");
    let sql = format!(
        "SELECT * FROM (SELECT {column} WHERE id >= {id} ORDER BY {table}.id LIMIT 1) AS later UNION ALL
         SELECT * FROM (SELECT {column} WHERE id < {id} ORDER BY {table}.id DESC LIMIT 1) AS earlier"
    );
    let near = visit
        .rows("look up the id", &sql, [lowest.to_string().into()], |row| Ok(columns::lossy(row, "id")))
        .await?;
    let common = |id: &String| {
        let id = digits(id);
        id.bytes().zip(typed.bytes()).take_while(|(one, other)| one == other).count()
    };
    Ok(near.into_iter().filter(|id| common(id) >= MIN_DIGITS).max_by_key(common))
}

/// Returns the leading hexadecimal digits of an id, in lower case and without dashes.
fn digits(text: &str) -> String {
    let hex = text.chars().filter(|c| *c != '-').take_while(char::is_ascii_hexdigit).take(32);
    hex.map(|c| c.to_ascii_lowercase()).collect()
}
