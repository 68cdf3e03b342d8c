//! A database that was restored from a backup is noticed, and billing waits for an operator.

use billing_test_support::Db;

use crate::daemon::{daemon, fetch, seed};

const STATE: &str = "[daemon]\nstate-dir = \".\"\n";
const BILLING: &str = "[[job]]\nname = \"billing\"\nkind = \"billing\"\nschedule = { every = \"1h\" }\n";

#[tokio::test]
async fn billing_waits_after_restored_backup() {
    let db = Db::sqlite().await;
    let program = daemon(&db, &[STATE, BILLING]);
    let backup = program.folder().join("backup.db");
    let charges = "SELECT count(*) FROM billing_charges";

    seed(&db, 2).await;
    program.run("bill").await.expect_code(0);
    db.execute(&format!("VACUUM INTO '{}'", backup.display())).await;
    seed(&db, 3).await;
    program.run("bill").await.expect_code(0);
    assert_eq!(fetch(&db, charges).await, "5");

    let restored = program.clone().env("DATABASE_URL", &format!("sqlite://{}", backup.display()));
    let copy = std::fs::read_to_string(program.folder().join("last-commit.json")).expect("it was noted");
    let noted = db.url.strip_suffix("?mode=rwc").expect("the harness lets the file be created");
    let as_restored = copy.replace(noted, &format!("sqlite://{}", backup.display()));
    std::fs::write(program.folder().join("last-commit.json"), as_restored).expect("a file of ours");

    let refused = restored.run("bill").await.expect_code(78);
    assert!(refused.text().contains("this host committed batch 2"), "{}", refused.text());
    assert!(refused.text().contains("billing-daemon accept-restore"), "{}", refused.text());
    restored.run("bill --dry-run").await.expect_code(0);
    let accepted = restored.run("accept-restore").await.expect_code(0);
    assert_eq!(accepted.out, ["accepted: the database ends at batch 1; batches 2 to 2 are gone"]);
    restored.run("bill").await.expect_code(0);
    restored.run("audit").await.expect_code(0);
}

#[tokio::test]
async fn unreadable_state_file_is_an_error() {
    let db = Db::sqlite().await;
    let program = daemon(&db, &[STATE, BILLING]).file("last-commit.json", "{ torn");
    let refused = program.run("bill").await.expect_code(78);
    assert!(refused.text().contains("cannot read ./last-commit.json"), "{}", refused.text());
    assert_eq!(fetch(&db, "SELECT count(*) FROM billing_batches").await, "0");
}
