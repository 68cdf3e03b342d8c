//! `billing-daemon guard`: the rights it needs, its changes, and its removal.

use billing_test_support::{Db, Ended, Login, on_variants};

use super::{assert_sound, debit, install_guard, number, panel, seed, silent_for};
use crate::daemon::{fetch, program, rows};

/// Everything that the panel guard could add or change outside our own tables.
const CATALOG: &str = "pg_get_triggerdef(oid) || tgenabled::text FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT pg_get_functiondef(oid) || coalesce(proacl::text, '') FROM pg_proc
               WHERE pronamespace = 'public'::regnamespace AND prokind = 'f'
    UNION ALL SELECT relname::text || coalesce(relacl::text, '') FROM pg_class WHERE relnamespace = 'public'::regnamespace
    ORDER BY 1";

async fn run(url: &str, arguments: &str) -> Ended {
    program().env("DATABASE_URL", url).run(arguments).await
}

async fn guard_installs_once_and_removes_completely(db: &Db) {
    let owner = db.url_for(Login::Owner);
    let before = rows(db, CATALOG).await;
    let output = run(&owner, "guard status").await.expect_code(1);
    assert_eq!(output.out, ["the panel guard is off: install it with `billing-daemon guard install`"]);
    assert_eq!(
        run(&owner, "guard remove").await.expect_code(0).out,
        ["the panel guard is not installed: nothing to do"]
    );

    let output = run(&owner, "guard install").await.expect_code(0);
    assert_eq!(output.out[0], "the panel guard is installed");
    assert!(output.out[1].contains("no run has succeeded for `hand-back-after`"), "{}", output.text());
    assert!(output.out[2].contains("a separate login"), "{}", output.text());
    let up = rows(db, CATALOG).await;
    assert_eq!(up.len(), before.len() + 4, "two triggers and their functions");
    let identity = "SELECT oid FROM pg_trigger WHERE tgname = 'billing_panel_guard'";
    let first = fetch(db, identity).await;
    let output = run(&owner, "guard install").await.expect_code(0);
    assert_eq!(output.out[0], "the panel guard is already installed: nothing to do");
    assert_eq!(
        (rows(db, CATALOG).await, fetch(db, identity).await),
        (up, first),
        "the table was not even locked"
    );

    // Every role may read the status.
    let output = run(&db.url, "guard status --json").await.expect_code(0);
    assert_eq!(output.out, [r#"{"installed":true,"enabled":true,"effective":true,"outdated":false}"#]);
    let output = run(&db.url, "guard status").await.expect_code(0);
    assert_eq!(output.out, ["the panel guard is on"]);

    assert_eq!(run(&owner, "guard remove").await.expect_code(0).out, ["the panel guard is removed"]);
    assert_eq!(rows(db, CATALOG).await, before);
}

async fn disabled_or_outdated_guard_is_repaired(db: &Db) {
    let owner = db.url_for(Login::Owner);
    install_guard(db).await;
    db.execute("ALTER TABLE payment_transactions DISABLE TRIGGER billing_panel_guard").await;
    let output = run(&db.url, "guard status").await.expect_code(1);
    assert!(output.out[0].contains("disabled"), "{}", output.text());
    run(&owner, "guard install").await.expect_code(0);
    run(&db.url, "guard status").await.expect_code(0);

    db.execute("ALTER TABLE wallets DISABLE TRIGGER billing_panel_guard_balance").await;
    let output = run(&db.url, "guard status").await.expect_code(1);
    assert!(output.out[0].contains("disabled"), "{}", output.text());
    run(&owner, "guard install").await.expect_code(0);

    let function = fetch(db, "SELECT pg_get_functiondef('billing_panel_guard'::regproc)").await;
    let on_wallets = fetch(db, "SELECT pg_get_functiondef('billing_panel_guard_balance'::regproc)").await;
    let again = |trigger: String| trigger.replacen("CREATE TRIGGER", "CREATE OR REPLACE TRIGGER", 1);
    let definition = "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname =";
    let on_ledger = again(fetch(db, &format!("{definition} 'billing_panel_guard'")).await);
    let on_wallets_fires = again(fetch(db, &format!("{definition} 'billing_panel_guard_balance'")).await);
    for (older, effective) in [
        (function.replace("BEGIN", "BEGIN -- as it was"), false),
        (function.replace("SET search_path", "-- SET search_path"), true),
        (on_wallets.replace("BEGIN", "BEGIN -- as it was"), false),
        ("DROP TRIGGER billing_panel_guard_balance ON wallets".to_owned(), false),
        (on_ledger.replace("FOR EACH ROW", "FOR EACH ROW WHEN (false)"), false),
        (on_ledger.replace("BEFORE INSERT", "AFTER INSERT"), false),
        (on_wallets_fires.replace("BEFORE UPDATE", "BEFORE UPDATE OF currency"), false),
    ] {
        assert!(older != on_ledger && older != on_wallets_fires, "nothing is replaced in {older}");
        db.execute(&older).await;
        let output = run(&db.url, "guard status --json").await.expect_code(i32::from(!effective));
        let shown = format!(r#""installed":true,"enabled":true,"effective":{effective},"outdated":true"#);
        assert!(output.out[0].contains(&shown), "{}", output.text());
        run(&owner, "guard install").await.expect_code(0);
        let output = run(&db.url, "guard status --json").await.expect_code(0);
        assert!(output.out[0].contains(r#""outdated":false"#), "{}", output.text());
    }
}

on_variants!(guard_installs_once_and_removes_completely: g1_role, g2_owner, g3_role);
on_variants!(disabled_or_outdated_guard_is_repaired: g3_role);

#[tokio::test]
async fn install_without_rights_names_the_owner() {
    let db = Db::g3_role().await;
    for arguments in ["guard install", "guard remove"] {
        let output = run(&db.url, arguments).await.expect_code(77);
        let sentence = "error: public.payment_transactions belongs to panel_owner, which alone can change its triggers: run this as \
                        panel_owner, or run `GRANT panel_owner TO billing_run` first";
        assert_eq!(output.err, [sentence]);
    }
    // The owner of the ledger, where our tables belong to another role.
    let owner = db.url_for(Login::Owner);
    db.execute(
        "ALTER TABLE billing_meters OWNER TO postgres; ALTER TABLE billing_charges OWNER TO postgres;
         REVOKE CREATE ON SCHEMA public FROM pg_database_owner; REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    )
    .await;
    let output = run(&owner, "guard install").await.expect_code(77);
    let grants = "GRANT CREATE, USAGE ON SCHEMA public TO panel_owner; GRANT INSERT ON billing_charges TO panel_owner; \
                  GRANT SELECT, INSERT, UPDATE ON billing_meters TO panel_owner";
    assert_eq!(
        output.err,
        [format!(
            "error: panel_owner lacks rights that this needs: run `{grants}` as their owner or, for an ALTER, as a superuser, and then this again"
        )]
    );
    db.execute(grants).await;
    run(&owner, "guard install").await.expect_code(0);
    seed(&db, 1, 1, 2).await;
    assert_eq!(panel(&db, &owner).await.pass().await.billed, 1, "with the rights of the owner");
}

/// An older version kept no record, so the owner of the panel's tables could do without rights on it.
#[tokio::test]
async fn removal_without_audit_rights_is_rejected() {
    let db = Db::g3_role().await;
    install_guard(&db).await;
    db.execute(
        "ALTER TABLE scheduler_audit_log OWNER TO postgres; ALTER TABLE billing_charges OWNER TO postgres",
    )
    .await;
    let owner = db.url_for(Login::Owner);
    let output = run(&owner, "guard remove").await.expect_code(77);
    let grant = "GRANT SELECT, INSERT ON scheduler_audit_log TO panel_owner";
    assert_eq!(
        output.err,
        [format!(
            "error: panel_owner lacks rights that this needs: run `{grant}` as their owner or, for an ALTER, as a superuser, and then this again"
        )]
    );
    run(&db.url, "guard status").await.expect_code(0);
    db.execute(grant).await;
    assert_eq!(run(&owner, "guard remove").await.expect_code(0).out, ["the panel guard is removed"]);
}

/// The functions of the panel guard run with the rights of their owner, which is the owner of the ledger at the installation.
#[tokio::test]
async fn changed_ledger_owner_is_reported_with_help() {
    let db = Db::g3_role().await;
    install_guard(&db).await;
    let rows_of_ours =
        rows(&db, "tablename FROM pg_tables WHERE tablename ~ '^(billing|scheduler)_'").await.join(", ");
    let role = format!("heir_{}", std::process::id());
    db.execute(&format!(
        "CREATE ROLE {role} LOGIN; GRANT CREATE, USAGE ON SCHEMA public TO {role};
         ALTER TABLE payment_transactions OWNER TO {role}; ALTER TABLE wallets OWNER TO {role};
         GRANT SELECT, INSERT, UPDATE ON {rows_of_ours} TO {role};
         GRANT SELECT, UPDATE ON vps_instances TO {role};
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}"
    ))
    .await;
    let heir = db.url_for(Login::Owner).replace("panel_owner@", &format!("{role}@"));
    let output = run(&heir, "guard status").await.expect_code(0);
    assert!(output.out[0].ends_with("run `billing-daemon guard install`"), "{}", output.text());
    let statements = format!(
        "ALTER FUNCTION billing_panel_guard() OWNER TO {role}; ALTER FUNCTION billing_panel_guard_balance() OWNER TO {role}"
    );
    for arguments in ["guard install", "guard remove"] {
        let output = run(&heir, arguments).await.expect_code(77);
        let sentence = format!(
            "error: {role} lacks rights that this needs: run `{statements}` as their owner or, for an ALTER, as a superuser, and then \
             this again"
        );
        assert_eq!(output.err, [sentence], "{arguments}");
    }
    db.execute(&statements).await;
    run(&heir, "guard install").await.expect_code(0);
    let output = run(&heir, "guard status").await.expect_code(0);
    assert_eq!(output.out, ["the panel guard is on"]);

    // A role that acts for both owners repairs it.
    db.execute(&format!(
        "ALTER FUNCTION billing_panel_guard() OWNER TO panel_owner; ALTER FUNCTION billing_panel_guard_balance() OWNER TO panel_owner;
         GRANT panel_owner TO {role}"
    ))
    .await;
    let output = run(&heir, "guard install").await.expect_code(0);
    assert_eq!(output.out[0], "the panel guard is updated");
    let owner = "SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE proname = 'billing_panel_guard'";
    assert_eq!(fetch(&db, owner).await, role);
    assert_eq!(run(&heir, "guard remove").await.expect_code(0).out, ["the panel guard is removed"]);
}

#[tokio::test]
async fn superuser_installs_guard_with_owner_rights() {
    let db = Db::g3_role().await;
    let output = run(&db.url_for(Login::Admin), "guard install").await.expect_code(0);
    assert!(output.out[2].contains("acts with the rights of panel_owner"), "{}", output.text());
    let owner = "SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE proname = 'billing_panel_guard'";
    assert_eq!(fetch(&db, owner).await, "panel_owner");
    let executable = "SELECT has_function_privilege('billing_run', 'billing_panel_guard()', 'EXECUTE')";
    assert_eq!(fetch(&db, executable).await, "false", "no other role installs it on another table");
}

#[tokio::test]
async fn install_gives_up_on_locked_table() {
    let db = Db::g1_role().await;
    let busy = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    let txn = sea_orm::TransactionTrait::begin(&busy).await.expect("it begins");
    let lock = "LOCK TABLE payment_transactions IN ROW EXCLUSIVE MODE";
    sea_orm::ConnectionTrait::execute_unprepared(&txn, lock).await.expect("it is free");
    let output = run(&db.url_for(Login::Owner), "guard install").await.expect_code(75);
    assert!(output.err[0].contains("lock timeout"), "{}", output.text());
    run(&db.url, "guard status").await.expect_code(1);
}

#[tokio::test]
async fn guard_commands_reject_sqlite() {
    let db = Db::sqlite().await;
    for arguments in ["guard install", "guard remove", "guard status", "guard status --json"] {
        let output = run(&db.url, arguments).await.expect_code(78);
        assert!(
            output.out.is_empty() && output.err[0].starts_with("error: the panel guard is for PostgreSQL"),
            "{}",
            output.text()
        );
    }
}

#[tokio::test]
async fn migrate_down_removes_guard_or_fails() {
    let db = Db::g3_role().await;
    install_guard(&db).await;
    db.execute("ALTER TABLE payment_transactions OWNER TO postgres").await;
    let owner = db.url_for(Login::Owner);
    let output = run(&owner, "migrate down --yes").await.expect_code(77);
    assert!(output.text().contains("its owner is postgres"), "{}", output.text());
    assert!(number(&db, "SELECT count(*) FROM pg_tables WHERE tablename = 'billing_charges'").await == 1);

    db.execute("ALTER TABLE payment_transactions OWNER TO panel_owner").await;
    run(&owner, "migrate down --yes").await.expect_code(0);
    seed(&db, 1, 1, 2).await;
    assert_eq!(panel(&db, &owner).await.pass().await.billed, 1, "without our tables");
    assert_eq!(number(&db, "SELECT count(*) FROM pg_proc WHERE proname ~ '^(billing|scheduler)_'").await, 0);
}

/// The panel guard has its owner's rights: a role that may only create functions in the schema does not gain them.
#[tokio::test]
async fn shadowing_builtin_functions_is_prevented() {
    let db = Db::g3_role().await;
    seed(&db, 1, 1, 2).await;
    let org = rows(&db, "id::text FROM organizations").await[0].parse().expect("an id");
    let label = rows(&db, "label::text FROM vps_instances").await.remove(0);
    db.execute("GRANT CREATE ON SCHEMA public TO billing_run").await;
    let stranger = db.connect().await;
    for (name, arguments, result) in [
        ("stolen", "numeric, integer", "numeric"),
        ("stolen_equal", "varchar, text", "boolean"),
        ("stolen_equal", "varchar, varchar", "boolean"),
        ("cardinality", "uuid[]", "integer"),
        ("array_agg", "uuid", "uuid[]"),
        ("make_interval", "hours integer", "interval"),
        ("regexp_match", "text, varchar", "text[]"),
    ] {
        let sql = format!(
            "CREATE FUNCTION {name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'hijacked by {name}({arguments})'; END $$"
        );
        sea_orm::ConnectionTrait::execute_unprepared(&stranger, &sql).await.expect("it may");
    }
    for (operator, left, right, function) in [
        ("*", "numeric", "integer", "stolen"),
        ("=", "varchar", "text", "stolen_equal"),
        ("=", "varchar", "varchar", "stolen_equal"),
    ] {
        let sql = format!(
            "CREATE OPERATOR {operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = {function})"
        );
        sea_orm::ConnectionTrait::execute_unprepared(&stranger, &sql).await.expect("it may");
    }
    install_guard(&db).await;
    let owner = billing_test_support::connect(&db.url_for(Login::Owner)).await;
    let description = format!("VPS Hourly Billing - {label} (2h)");
    assert_eq!(debit(&owner, org, "-0.02", &description).await, Ok(()));
}

#[tokio::test]
async fn guard_without_row_rejects_debits() {
    let db = Db::g1_role().await;
    install_guard(&db).await;
    seed(&db, 1, 1, 2).await;
    db.execute("DELETE FROM scheduler_fencing").await;
    let panel = panel(&db, &db.url_for(Login::Owner)).await;
    let pass = panel.pass().await;
    assert!(pass.billed == 0 && pass.failed[0].contains("has lost its row in scheduler_fencing"), "{pass:?}");
    run(&db.url_for(Login::Owner), "guard install").await.expect_code(0);
    assert_eq!(panel.pass().await.billed, 1);
}

/// The whole program, with the panel guard installed: bills, previews and audits as if there were none.
#[tokio::test]
async fn commands_work_with_panel_guard() {
    let db = Db::g3_role().await;
    install_guard(&db).await;
    seed(&db, 2, 2, 2).await;
    let output = run(&db.url, "bill --dry-run").await.expect_code(0);
    assert!(
        output.out[0].starts_with("would charge 0.08 USD for 8 hours of 4 instances; 0 held"),
        "{}",
        output.text()
    );
    let output = run(&db.url, "bill").await.expect_code(0);
    assert!(
        output.out[0].starts_with("charged 0.08 USD for 8 hours of 4 instances; 0 held"),
        "{}",
        output.text()
    );
    silent_for(&db, 91).await;
    seed(&db, 1, 1, 2).await;
    assert_eq!(panel(&db, &db.url_for(Login::Owner)).await.pass().await.billed, 1);
    run(&db.url, "audit").await.expect_code(0);
    assert_sound(&db).await;
}
