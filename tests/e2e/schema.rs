//! The migrations on every kind of database: what they add, what they leave as it was, and what is refused without them.

use std::collections::BTreeSet;

use billing_test_support::{Database, Db, Login, Panel, Postgres, Program, Sqlite, connect};
use migration::Migrator;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use sea_orm_migration::MigratorTrait;

use crate::daemon::program;

/// Everything that makes the tables what they are, one line each, which begins with a name.
const POSTGRES_CATALOG: &str = "
    SELECT concat_ws(' ', relname, relkind, pg_get_userbyid(relowner), relrowsecurity, relforcerowsecurity, relacl)
      FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S', 'v')
    UNION ALL
    SELECT concat_ws(' ', a.attrelid::regclass, 'column', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                     a.attidentity, pg_get_expr(d.adbin, d.adrelid))
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
      LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT concat_ws(' ', conrelid::regclass, 'constraint', conname, pg_get_constraintdef(oid))
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT concat_ws(' ', tablename, 'index', indexdef) FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT concat_ws(' ', tgrelid::regclass, 'trigger', pg_get_triggerdef(oid), tgenabled)
      FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL
    SELECT concat_ws(' ', tablename, 'policy', policyname, permissive, roles, cmd, qual, with_check)
      FROM pg_policies WHERE schemaname = 'public'
    UNION ALL
    SELECT concat_ws(' ', proname, 'function', pg_get_functiondef(p.oid))
      FROM pg_proc p LEFT JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'
     WHERE pronamespace = 'public'::regnamespace AND prokind = 'f' AND d.objid IS NULL";

const SQLITE_CATALOG: &str =
    "SELECT tbl_name || ' ' || type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_master
      WHERE name <> 'sqlite_sequence'";

/// A database that nothing was migrated in.
enum Bare {
    Sqlite(Sqlite),
    Postgres(Database),
}

impl Bare {
    async fn with(panel: Option<Panel>) -> Self {
        match panel {
            None => Self::Sqlite(Sqlite::database()),
            Some(panel) => Self::Postgres(Postgres::database(panel).await),
        }
    }

    /// As the one who migrates.
    fn url(&self) -> String {
        match self {
            Self::Sqlite(file) => file.url(),
            Self::Postgres(database) => database.url(Login::Owner),
        }
    }

    async fn connect(&self) -> DatabaseConnection {
        connect(&self.url()).await
    }

    /// Migrates up by the library; returns what was applied.
    async fn up(&self, steps: Option<u32>) -> Vec<String> {
        let db = self.connect().await;
        let names = migration::up(&db, steps).await.expect("the schema goes up");
        db.close().await.expect("a connection that answers can be closed");
        names
    }

    /// Migrates all the way down by the library.
    async fn down(&self) {
        let db = self.connect().await;
        migration::down(&db, None).await.expect("the schema goes down");
        db.close().await.expect("a connection that answers can be closed");
    }

    async fn catalog(&self) -> BTreeSet<String> {
        let db = self.connect().await;
        let catalog =
            if db.get_database_backend() == DbBackend::Sqlite { SQLITE_CATALOG } else { POSTGRES_CATALOG };
        let lines = texts(&db, catalog).await;
        db.close().await.expect("a connection that answers can be closed");
        lines.into_iter().collect()
    }

    /// How many rows each table has.
    async fn rows(&self) -> Vec<String> {
        let db = self.connect().await;
        let tables = match db.get_database_backend() {
            DbBackend::Sqlite => {
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'sqlite_sequence'"
            }
            _ => "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'",
        };
        let mut counts = Vec::new();
        for table in texts(&db, tables).await {
            let count = format!("SELECT '{table} ' || count(*) FROM {table}");
            counts.extend(texts(&db, &count).await);
        }
        counts.sort_unstable();
        counts
    }

    /// The daemon's program for it.
    fn program(&self) -> Program {
        let url = self.url().replace("?mode=rwc", "");
        program().env("DATABASE_URL", &url).file("jobs.toml", include_str!("../../jobs.toml"))
    }
}

async fn texts(db: &DatabaseConnection, sql: &str) -> Vec<String> {
    let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await;
    let rows = rows.unwrap_or_else(|error| panic!("{error}, in:\n{sql}"));
    rows.iter().filter_map(|row| row.try_get_by_index(0).expect("a line of text or NULL")).collect()
}

const EVERYWHERE: [Option<Panel>; 5] =
    [None, Some(Panel::Empty), Some(Panel::G1), Some(Panel::G2), Some(Panel::G3)];

/// Of these lines, those about what was not there before and is not ours by name.
fn not_ours(lines: impl IntoIterator<Item = String>) -> Vec<String> {
    let ours = |line: &String| {
        ["billing_", "scheduler_"].iter().any(|prefix| line.starts_with(prefix))
            || line.contains(" index CREATE INDEX billing_")
    };
    lines.into_iter().filter(|line| !ours(line)).collect()
}

/// A customer with money, and the row of a daemon where there is a place for one.
async fn insert_customer(database: &Bare) {
    let db = database.connect().await;
    let ids = ["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"];
    let mut rows = format!(
        "INSERT INTO users (id, email, name) VALUES ('{0}', 'a@example.com', 'A');
         INSERT INTO organizations (id, name, slug, owner_id) VALUES ('{1}', 'O', 'o', '{0}');
         INSERT INTO wallets (organization_id, balance) VALUES ('{1}', 5);",
        ids[0], ids[1]
    );
    if database.catalog().await.iter().any(|line| line.starts_with("billing_daemon_status")) {
        rows += "INSERT INTO billing_daemon_status (daemon_instance_id, status) VALUES ('one', 'stopped');";
    }
    db.execute_unprepared(&rows).await.expect("the owner may write");
    db.close().await.expect("a connection that answers can be closed");
}

#[tokio::test]
async fn migrate_down_removes_what_up_created() {
    for panel in EVERYWHERE {
        let database = Bare::with(panel).await;
        let has_panel = !matches!(panel, None | Some(Panel::Empty));
        if has_panel {
            insert_customer(&database).await;
        }
        let (before, rows) = (database.catalog().await, database.rows().await);
        database.up(None).await;
        let up = database.catalog().await;
        let lost: Vec<_> = before.difference(&up).collect();
        assert!(lost.is_empty(), "{panel:?}: up changed {lost:#?}");
        if has_panel {
            let added = not_ours(up.difference(&before).cloned());
            assert!(added.is_empty(), "{panel:?}: up added {added:#?}");
        }
        assert_eq!(database.up(None).await, [""; 0]);
        assert_eq!(database.catalog().await, up, "{panel:?}: up a second time");
        if !has_panel {
            insert_customer(&database).await;
        }

        database.down().await;
        assert_eq!(database.catalog().await, before, "{panel:?}: down");
        assert_eq!(database.rows().await, rows, "{panel:?}: down");
        database.up(None).await;
        assert_eq!(database.catalog().await, up, "{panel:?}: up after down");
    }
}

/// What an earlier version applied is not applied again, so whatever came later must come by a later migration.
#[tokio::test]
async fn partial_migration_is_completed() {
    for panel in EVERYWHERE {
        let [new, old] = [Bare::with(panel).await, Bare::with(panel).await];
        new.up(None).await;
        old.up(Some(2)).await;
        let db = old.connect().await;
        let not_yet = "DROP INDEX IF EXISTS billing_holds_open_by_organization";
        db.execute_unprepared(not_yet).await.expect("the owner may drop it");
        db.close().await.expect("a connection that answers can be closed");
        old.up(None).await;
        assert_eq!(old.catalog().await, new.catalog().await, "{panel:?}");
    }
}

#[tokio::test]
async fn every_migration_path_gives_same_schema() {
    for panel in EVERYWHERE {
        let [by_library, by_seaorm, by_command] =
            [Bare::with(panel).await, Bare::with(panel).await, Bare::with(panel).await];
        by_library.up(None).await;
        Migrator::up(&by_seaorm.connect().await, None).await.expect("the schema goes up");
        let names: Vec<String> =
            Migrator::migrations().iter().map(|migration| migration.name().to_owned()).collect();
        let each = |word: &str| names.iter().map(|name| format!("{word}  {name}")).collect::<Vec<_>>();
        let check = async |arguments: &str, output: Vec<String>| {
            let ended = by_command.program().run(arguments).await.expect_code(0);
            assert_eq!(ended.out, output, "{panel:?}: {arguments}");
            assert!(ended.err.is_empty(), "{panel:?}: {arguments}: {}", ended.text());
        };
        check("migrate up", each("applied")).await;
        check("migrate up", vec!["nothing to do".to_owned()]).await;
        check("migrate status", each("applied")).await;
        let expected = by_library.catalog().await;
        assert_eq!(by_seaorm.catalog().await, expected, "{panel:?}");
        assert_eq!(by_command.catalog().await, expected, "{panel:?}");

        by_library.down().await;
        Migrator::down(&by_seaorm.connect().await, None).await.expect("the schema goes down");
        let refused = by_command.program().run("migrate down").await.expect_code(64);
        assert!(refused.text().contains("run `billing-daemon migrate down --yes` to confirm"));
        check("migrate down --yes", each("reverted").into_iter().rev().collect()).await;
        check("migrate status", each("pending")).await;
        let expected = by_library.catalog().await;
        assert_eq!(by_seaorm.catalog().await, expected, "{panel:?}");
        assert_eq!(by_command.catalog().await, expected, "{panel:?}");
    }
}

#[tokio::test]
async fn incompatible_schema_prevents_start() {
    for panel in [None, Some(Panel::G1), Some(Panel::G3)] {
        let database = Bare::with(panel).await;
        let up = "run `billing-daemon migrate up`";
        for (state, sentence) in [
            ("missing", format!("the schema is missing: {up}")),
            ("older", format!("the schema is older than this program (it lacks m20261122_000002_scheduler_tables, m20261122_000003_billing_tables): {up}")),
            ("newer", "the schema is newer than this program (which does not know m29990101_000001_later): install a \
                       newer version, or undo these with the version that applied them".to_owned()),
        ] {
            match state {
                "missing" => database.connect().await.close().await.expect("the database is there"),
                "older" => drop(database.up(Some(1)).await),
                _ => {
                    database.up(None).await;
                    let later = "INSERT INTO billing_migrations (version, applied_at) VALUES ('m29990101_000001_later', 0)";
                    database.connect().await.execute_unprepared(later).await.expect("a later version migrates");
                }
            }
            let (catalog, rows) = (database.catalog().await, database.rows().await);
            for command in ["run", "bill", "bill --dry-run", "audit --json"] {
                let ended = database.program().run(command).await.expect_code(78);
                assert_eq!(ended.err, [format!("error: {sentence}")], "{panel:?}, {state}: {command}");
                assert!(ended.out.is_empty(), "{panel:?}, {state}: {command}: {}", ended.text());
            }
            assert_eq!(database.catalog().await, catalog, "{panel:?}, {state}");
            assert_eq!(database.rows().await, rows, "{panel:?}, {state}");
        }
    }
}

#[tokio::test]
async fn search_path_without_schema_is_named() {
    let db = Db::postgres().await;
    let name = crate::daemon::fetch(&db, "SELECT current_database()").await;
    db.execute(&format!("ALTER DATABASE \"{name}\" SET search_path = nowhere")).await;
    let ended =
        program().env("DATABASE_URL", &db.url_for(Login::Owner)).run("migrate up").await.expect_code(70);
    assert!(
        ended.text().contains("the search_path of this login has no schema that it may use"),
        "{}",
        ended.text()
    );
}
