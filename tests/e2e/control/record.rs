//! Who asked for what is on record, and the record shows if somebody changed it.

use billing_daemon::{
    database::{Database, Pool},
    store::audit::first_broken_link,
};
use e2e::{Db, on_every_engine};
use sea_orm::{ConnectionTrait, DbBackend};

use super::{ask, with};
use crate::daemon::{TICK, rows};

async fn every_request_is_one_link_of_a_chain_that_shows_what_was_changed(db: &Db) {
    let program = with(db, &[TICK]);
    ask(&program, "jobs pause tick --reason tea --as grace").await;
    ask(&program, "jobs pause tick --reason more").await;
    ask(&program, "jobs trigger tick").await;
    ask(&program, "jobs resume tick --as grace").await;
    let chain = "id || ' ' || actor || ' ' || action || ' ' || job || ' ' || coalesce(reason, '-')
                 FROM billing_job_audit ORDER BY id";
    let found = rows(db, chain).await;
    assert!(found[1].starts_with("2 ada@"), "{found:?}");
    assert_eq!((found[0].as_str(), found[2].as_str()), ("1 grace pause tick tea", "3 grace resume tick -"));
    let daemon = Database::new(db.url.parse().expect("the URL of a database of ours"));
    let daemon = daemon.connect(Pool::Single).await.expect("it opens");
    let broken = async || first_broken_link(&daemon).await.expect("it answers");
    assert_eq!(broken().await, None);

    for change in [
        "UPDATE billing_job_audit SET actor = 'nobody' WHERE id = 2",
        "DELETE FROM billing_job_audit WHERE id = 2",
    ] {
        let refused = db.admin().execute_unprepared(change).await.expect_err(change).to_string();
        assert!(refused.contains("billing_job_audit is append-only"), "{refused}");
    }
    db.execute(match db.backend() {
        DbBackend::Sqlite => {
            "DROP TRIGGER billing_job_audit_no_update; DROP TRIGGER billing_job_audit_no_delete"
        }
        _ => "ALTER TABLE billing_job_audit DISABLE TRIGGER billing_job_audit_append_only",
    })
    .await;
    db.execute("UPDATE billing_job_audit SET actor = 'nobody' WHERE id = 2").await;
    assert_eq!(broken().await, Some(2), "it was changed");
    db.execute("DELETE FROM billing_job_audit WHERE id = 2").await;
    assert_eq!(broken().await, Some(3), "its predecessor is gone");
}

on_every_engine!(every_request_is_one_link_of_a_chain_that_shows_what_was_changed);
