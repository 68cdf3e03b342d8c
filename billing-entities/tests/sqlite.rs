//! Each entity reads the values of its table's row, and rows are found and written by id.

use billing_entities::*;
use sea_orm::prelude::{DateTimeUtc, Uuid};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, Database, DatabaseConnection, EntityTrait, QueryFilter,
    Set,
};
use tempfile::TempDir;

/// One row of each table. `AT` is an instant in the panel's tables, `1795341600123456` the same one in the other tables.
const ROWS: &str = r#"
INSERT INTO users VALUES ('00000000-0000-4000-8000-000000000001', 'a@example.com', 'Ada', 'admin', AT, NULL);
INSERT INTO organizations (id, name, slug, owner_id, settings, website, created_at, updated_at) VALUES
    ('00000000-0000-4000-8000-000000000002', 'Acme', 'acme', '00000000-0000-4000-8000-000000000001',
    '{"theme":"dark"}', 'acme.example', AT, AT);
INSERT INTO wallets VALUES
    ('00000000-0000-4000-8000-000000000003', '00000000-0000-4000-8000-000000000002', 123456, 'EUR', NULL, NULL);
INSERT INTO vps_plans (id, name, provider_plan_id, base_price, markup_price, specifications, active, created_at,
    updated_at) VALUES ('00000000-0000-4000-8000-000000000004', 'Small', 's-1', 50000, NULL, '{"cores":1}', TRUE,
    NULL, NULL);
INSERT INTO vps_instances (id, organization_id, plan_id, provider_instance_id, label, status, configuration,
    last_billed_at, created_at, updated_at) VALUES ('00000000-0000-4000-8000-000000000005',
    '00000000-0000-4000-8000-000000000002', 's-1', '77', 'web', NULL, NULL, AT, '2026-11-22 10:00:00', NULL);
INSERT INTO payment_transactions VALUES ('00000000-0000-4000-8000-000000000006',
    '00000000-0000-4000-8000-000000000002', -123456, 'EUR', 'wallet_debit', 'internal', NULL, 'completed', 'Web',
    '{"balance_before":1}', NULL, NULL);
INSERT INTO vps_billing_cycles VALUES ('00000000-0000-4000-8000-000000000007',
    '00000000-0000-4000-8000-000000000005', '00000000-0000-4000-8000-000000000002', AT, AT, 50000, 123456,
    'billed', '00000000-0000-4000-8000-000000000006', NULL, NULL, NULL);
INSERT INTO billing_daemon_status VALUES (8, 'host-1', 'running', AT, TRUE, 9, 123456, 50000, NULL, AT, NULL, NULL,
    NULL, NULL);
INSERT INTO scheduler_jobs VALUES ('billing', 1, 'me', '00000000-0000-4000-8000-000000000012', 1795341600123456, 1795341600123456,
    1795341600123456, NULL, 2, NULL, 1795341600123456, 'every 1h', 1795341600123456, NULL, 1795341600123456, NULL);
INSERT INTO scheduler_fencing VALUES ('billing', 3, NULL, 4500, NULL);
INSERT INTO scheduler_runs VALUES ('00000000-0000-4000-8000-000000000009', 'billing', '', 1795341600123456,
    'done', 'manual', 1, 2, 'me', 1795341600123456, 1795341600123456, 3, 4, NULL, NULL, '{"amount":5}', NULL, 1,
    NULL);
INSERT INTO scheduler_pauses VALUES ('00000000-0000-4000-8000-000000000010', 'billing', 1795341600123456, 'ada', NULL,
    NULL, NULL);
INSERT INTO scheduler_requests VALUES ('00000000-0000-4000-8000-000000000011', 'billing', 'replay', 1795341600123456,
    NULL, 1795341600123456, 'ada', 'tea');
INSERT INTO scheduler_queue VALUES ('00000000-0000-4000-8000-000000000012', 'mail', '{"to":"ada"}', 1795341600123456,
    1795341600123456, 5, NULL, 2, 3, 'one', 1795341600123456, NULL);
INSERT INTO scheduler_audit_log VALUES (1, 1795341600123456, 'ada', 'pause', 'billing', NULL, '{}', '', 'abc');
INSERT INTO billing_batches VALUES (1, '00000000-0000-4000-8000-000000000009', 2, 1795341600123456, 3, 4, 5, 6,
    '{"USD":{"charges":4,"hours":6,"amount":7}}', 1795341600123456, NULL);
INSERT INTO billing_charges VALUES (1795341600123456, '00000000-0000-4000-8000-000000000005',
    '00000000-0000-4000-8000-000000000002', 1, 2, 3, 4, 5, NULL, 'USD', TRUE);
INSERT INTO billing_meters VALUES ('00000000-0000-4000-8000-000000000005', '00000000-0000-4000-8000-000000000002',
     1795341600123456, 1, 9223372036854775807, 3, '[[1,2,1]]', 1795341600123456, 1795341600123456, NULL, 1795341600123456);
INSERT INTO billing_holds VALUES (1, '00000000-0000-4000-8000-000000000005',
    '00000000-0000-4000-8000-000000000002', 'web', 'unknown_plan', NULL, 2, NULL, NULL, 1795341600123456,
    1795341600123456, 1795341600123456, 'written_off', 'unknown_plan', 1795341600123456, 'ada', 'known');
INSERT INTO billing_seen_rates VALUES ('plan', 'daily', 1795341600123456, 3, 2);
INSERT INTO billing_wallet_openings VALUES ('00000000-0000-4000-8000-000000000003',
    '00000000-0000-4000-8000-000000000002', 1, -2, 1795341600123456);
INSERT INTO billing_standings VALUES ('00000000-0000-4000-8000-000000000002', 'exhausted', 1795341600123456, TRUE, 2, -1, 3, 4, -5,
    1795341600123456, 6, 'running', 5, 1795341600123456, 1795341600123456);
INSERT INTO billing_notices VALUES ('00000000-0000-4000-8000-000000000002', 2, -1, '00000000-0000-4000-8000-000000000013', FALSE,
    1795341600123456, 1795341600123456);
INSERT INTO billing_events VALUES ('00000000-0000-4000-8000-000000000013', 'billing.service.suspend',
    '00000000-0000-4000-8000-000000000002', 6, 1, '{}', 1795341600123456);
INSERT INTO billing_deliveries VALUES ('00000000-0000-4000-8000-000000000013', 'panel', '00000000-0000-4000-8000-000000000002', TRUE,
    'pending', 1, 1795341600123456, 1795341600123456, 503, 'busy', NULL);
INSERT INTO billing_policies VALUES ('00000000-0000-4000-8000-000000000002', 'exempt', 7, 1795341600123456, 'a@b.example', 'ada',
    'tea', 1795341600123456);
"#;

async fn filled() -> (TempDir, DatabaseConnection) {
    let dir = TempDir::new().expect("the system has a folder for temporary files");
    let url = format!("sqlite://{}?mode=rwc", dir.path().join("billing.db").display());
    let db = Database::connect(url).await.expect("a new file opens");
    migration::up(&db, None).await.expect("an empty database can be migrated");
    let rows = ROWS.replace("AT", "'2026-11-22T10:00:00.123456+00:00'");
    db.execute_unprepared(&rows).await.expect("the rows fit the tables");
    (dir, db)
}

fn id(number: u128) -> Id {
    Id(Uuid::from_u128(0x4000_8000_0000_0000_0000 + number))
}

fn at() -> DateTimeUtc {
    DateTimeUtc::from_timestamp_micros(1_795_341_600_123_456).expect("a year of four digits")
}

fn json(text: &str) -> sea_orm::JsonValue {
    text.parse().expect("it is JSON")
}

/// The table holds exactly this row.
#[track_caller]
fn check<M: PartialEq + std::fmt::Debug>(rows: Result<Vec<M>, sea_orm::DbErr>, row: M) {
    assert_eq!(rows.expect("the table can be read"), [row]);
}

#[tokio::test]
async fn organizations_and_wallets_are_read() {
    let (_dir, db) = filled().await;
    check(
        users::Entity::find().all(&db).await,
        users::Model {
            id: id(1),
            email: "a@example.com".to_owned(),
            name: "Ada".to_owned(),
            role: "admin".to_owned(),
            created_at: Some(at()),
            updated_at: None,
        },
    );
    check(
        organizations::Entity::find().all(&db).await,
        organizations::Model {
            id: id(2),
            name: "Acme".to_owned(),
            slug: "acme".to_owned(),
            owner_id: id(1),
            settings: Some(json(r#"{"theme":"dark"}"#)),
            website: Some("acme.example".to_owned()),
            address: None,
            tax_id: None,
            created_at: Some(at()),
            updated_at: Some(at()),
        },
    );
    check(
        wallets::Entity::find().all(&db).await,
        wallets::Model {
            id: id(3),
            organization_id: id(2),
            balance: Some(Money(123_456)),
            currency: Some("EUR".to_owned()),
            created_at: None,
            updated_at: None,
        },
    );
}

#[tokio::test]
async fn instances_and_cycles_are_read() {
    let (_dir, db) = filled().await;
    check(
        vps_plans::Entity::find().all(&db).await,
        vps_plans::Model {
            id: id(4),
            name: "Small".to_owned(),
            provider_plan_id: "s-1".to_owned(),
            provider_id: None,
            base_price: Some(Money(50_000)),
            markup_price: None,
            specifications: json(r#"{"cores":1}"#),
            active: true,
            created_at: None,
            updated_at: None,
        },
    );
    check(
        vps_instances::Entity::find().all(&db).await,
        vps_instances::Model {
            id: id(5),
            organization_id: id(2),
            plan_id: "s-1".to_owned(),
            provider_instance_id: "77".to_owned(),
            label: "web".to_owned(),
            status: None,
            configuration: None,
            last_billed_at: Some(at()),
            created_at: DateTimeUtc::from_timestamp(1_795_341_600, 0),
            updated_at: None,
        },
    );
    check(
        payment_transactions::Entity::find().all(&db).await,
        payment_transactions::Model {
            id: id(6),
            organization_id: id(2),
            amount: Money(-123_456),
            currency: Some("EUR".to_owned()),
            payment_method: "wallet_debit".to_owned(),
            payment_provider: "internal".to_owned(),
            provider_transaction_id: None,
            status: "completed".to_owned(),
            description: Some("Web".to_owned()),
            metadata: Some(json(r#"{"balance_before":1}"#)),
            created_at: None,
            updated_at: None,
        },
    );
    check(
        vps_billing_cycles::Entity::find().all(&db).await,
        vps_billing_cycles::Model {
            id: id(7),
            vps_instance_id: id(5),
            organization_id: id(2),
            billing_period_start: at(),
            billing_period_end: at(),
            hourly_rate: Money(50_000),
            total_amount: Money(123_456),
            status: Some("billed".to_owned()),
            payment_transaction_id: Some(id(6)),
            metadata: None,
            created_at: None,
            updated_at: None,
        },
    );
    check(
        billing_daemon_status::Entity::find().all(&db).await,
        billing_daemon_status::Model {
            id: 8,
            daemon_instance_id: "host-1".to_owned(),
            status: "running".to_owned(),
            last_run_at: Some(at()),
            last_run_success: Some(true),
            instances_billed: Some(9),
            total_amount: Some(Money(123_456)),
            total_hours: Some(Hours(50_000)),
            error_message: None,
            started_at: Some(at()),
            heartbeat_at: None,
            metadata: None,
            created_at: None,
            updated_at: None,
        },
    );
}

#[tokio::test]
async fn jobs_and_runs_are_read() {
    let (_dir, db) = filled().await;
    let now = Instant(at());
    check(
        scheduler_jobs::Entity::find().all(&db).await,
        scheduler_jobs::Model {
            job: "billing".to_owned(),
            fencing_token: 1,
            holder: Some("me".to_owned()),
            claimed_by: Some(id(0x12)),
            expires_at: Some(now),
            cursor_at: now,
            retry_scheduled_at: Some(now),
            retry_not_before: None,
            failed_attempts: 2,
            last_error: None,
            updated_at: now,
            schedule: Some("every 1h".to_owned()),
            next_at: Some(now),
            late_at: None,
            stuck_at: Some(now),
            replaced_schedules: None,
        },
    );
    check(
        scheduler_fencing::Entity::find().all(&db).await,
        scheduler_fencing::Model {
            job: "billing".to_owned(),
            fencing_token: 3,
            last_success_at: None,
            hand_back_after_seconds: 4500,
            halt: None,
        },
    );
    check(
        scheduler_runs::Entity::find().all(&db).await,
        scheduler_runs::Model {
            id: id(9),
            job: "billing".to_owned(),
            node: String::new(),
            scheduled_at: now,
            status: "done".to_owned(),
            cause: "manual".to_owned(),
            attempt: 1,
            fencing_token: 2,
            daemon_id: "me".to_owned(),
            started_at: now,
            finished_at: now,
            lateness_ms: 3,
            items: 4,
            reason: None,
            error: None,
            details: Some(json(r#"{"amount":5}"#)),
            scheduled_from: None,
            scheduled_count: 1,
            request_id: None,
        },
    );
    check(
        billing_batches::Entity::find().all(&db).await,
        billing_batches::Model {
            id: 1,
            run_id: id(9),
            fencing_token: 2,
            as_of: now,
            instances: 3,
            charges: 4,
            held: 5,
            hours: 6,
            currencies: json(r#"{"USD":{"charges":4,"hours":6,"amount":7}}"#),
            created_at: now,
            ledger_until: None,
        },
    );
}

#[tokio::test]
async fn pauses_requests_and_audit_log_are_read() {
    let (_dir, db) = filled().await;
    let now = Instant(at());
    check(
        scheduler_pauses::Entity::find().all(&db).await,
        scheduler_pauses::Model {
            id: id(0x10),
            job: "billing".to_owned(),
            paused_at: now,
            paused_by: "ada".to_owned(),
            reason: None,
            resumed_at: None,
            resumed_by: None,
        },
    );
    check(
        scheduler_requests::Entity::find().all(&db).await,
        scheduler_requests::Model {
            id: id(0x11),
            job: "billing".to_owned(),
            kind: "replay".to_owned(),
            scheduled_at: Some(now),
            fencing_token: None,
            requested_at: now,
            requested_by: "ada".to_owned(),
            reason: Some("tea".to_owned()),
        },
    );
    check(
        scheduler_queue::Entity::find().all(&db).await,
        scheduler_queue::Model {
            id: id(0x12),
            kind: "mail".to_owned(),
            payload: json(r#"{"to":"ada"}"#),
            scheduled_at: now,
            not_before: now,
            priority: 5,
            unique_key: None,
            failed_attempts: 2,
            fencing_token: 3,
            holder: Some("one".to_owned()),
            expires_at: Some(now),
            finished_at: None,
        },
    );
    check(
        scheduler_audit_log::Entity::find().all(&db).await,
        scheduler_audit_log::Model {
            id: 1,
            at: now,
            actor: "ada".to_owned(),
            action: "pause".to_owned(),
            job: "billing".to_owned(),
            reason: None,
            details: "{}".to_owned(),
            previous_hash: String::new(),
            hash: "abc".to_owned(),
        },
    );
}

#[tokio::test]
async fn charges_meters_and_holds_are_read() {
    let (_dir, db) = filled().await;
    let now = Instant(at());
    check(
        billing_charges::Entity::find().all(&db).await,
        billing_charges::Model {
            period_start: now,
            instance_id: id(5),
            organization_id: id(2),
            batch_id: 1,
            hours: 2,
            rate: 3,
            amount: 4,
            carry: 5,
            payment_transaction_id: None,
            currency: "USD".to_owned(),
            by_panel: true,
        },
    );
    check(
        billing_meters::Entity::find().all(&db).await,
        billing_meters::Model {
            instance_id: id(5),
            organization_id: id(2),
            billed_through: now,
            carry: 1,
            rate: Some(i64::MAX),
            backup_rate: Some(3),
            rate_changes: Some(json("[[1,2,1]]")),
            seen_at: now,
            opened_at: now,
            panel_debited_at: None,
            deleted_at: Some(now),
        },
    );
    check(
        billing_holds::Entity::find().all(&db).await,
        billing_holds::Model {
            id: 1,
            instance_id: id(5),
            organization_id: id(2),
            label: "web".to_owned(),
            reason: "unknown_plan".to_owned(),
            detail: None,
            hours_due: Some(2),
            amount_due: None,
            currency: None,
            opened_at: now,
            seen_at: now,
            closed_at: Some(now),
            closed_reason: Some("written_off".to_owned()),
            accepted_for: Some("unknown_plan".to_owned()),
            accepted_until: Some(now),
            accepted_by: Some("ada".to_owned()),
            accepted_note: Some("known".to_owned()),
        },
    );
    check(
        billing_seen_rates::Entity::find().all(&db).await,
        billing_seen_rates::Model {
            plan_id: "plan".to_owned(),
            backups: "daily".to_owned(),
            seen_at: now,
            rate: 3,
            backup_rate: 2,
        },
    );
    check(
        billing_wallet_openings::Entity::find().all(&db).await,
        billing_wallet_openings::Model {
            wallet_id: id(3),
            organization_id: id(2),
            opening_balance: 1,
            opening_ledger: -2,
            opened_at: now,
        },
    );
}

#[tokio::test]
async fn standings_and_notices_are_read() {
    let (_dir, db) = filled().await;
    let now = Instant(at());
    check(
        billing_standings::Entity::find().all(&db).await,
        billing_standings::Model {
            organization_id: id(2),
            state: "exhausted".to_owned(),
            since: now,
            watched: true,
            episode: 2,
            level: Some(-1),
            burn: Some(3),
            owed: Some(4),
            runway_hours: Some(-5),
            exhausted_at: Some(now),
            order_number: 6,
            desired: "running".to_owned(),
            acked_order: Some(5),
            acked_at: Some(now),
            evaluated_at: now,
        },
    );
    check(
        billing_notices::Entity::find().all(&db).await,
        billing_notices::Model {
            organization_id: id(2),
            episode: 2,
            level: -1,
            event_id: Some(id(0x13)),
            passed: false,
            created_at: now,
            delivered_at: Some(now),
        },
    );
}

#[tokio::test]
async fn events_and_policies_are_read() {
    let (_dir, db) = filled().await;
    let now = Instant(at());
    check(
        billing_events::Entity::find().all(&db).await,
        billing_events::Model {
            id: id(0x13),
            kind: "billing.service.suspend".to_owned(),
            organization_id: Some(id(2)),
            order_number: Some(6),
            endpoints: 1,
            body: "{}".to_owned(),
            created_at: now,
        },
    );
    check(
        billing_deliveries::Entity::find().all(&db).await,
        billing_deliveries::Model {
            event_id: id(0x13),
            endpoint: "panel".to_owned(),
            organization_id: Some(id(2)),
            needed: true,
            status: "pending".to_owned(),
            attempts: 1,
            next_at: now,
            claimed_until: Some(now),
            last_code: Some(503),
            last_error: Some("busy".to_owned()),
            sent_at: None,
        },
    );
    check(
        billing_policies::Entity::find().all(&db).await,
        billing_policies::Model {
            organization_id: id(2),
            mode: "exempt".to_owned(),
            credit_limit: 7,
            never_suspend_until: Some(now),
            contact: Some("a@b.example".to_owned()),
            changed_by: "ada".to_owned(),
            reason: "tea".to_owned(),
            changed_at: now,
        },
    );
}

#[tokio::test]
async fn rows_are_found_and_written_by_id() {
    let (_dir, db) = filled().await;
    let organization = organizations::ActiveModel {
        id: Set(id(20)),
        name: Set("Zeta".to_owned()),
        slug: Set("zeta".to_owned()),
        owner_id: Set(id(1)),
        created_at: Set(Some(at())),
        ..Default::default()
    };
    let inserted = organization.insert(&db).await.unwrap();
    assert_eq!((inserted.id, inserted.created_at), (id(20), Some(at())));
    let found = organizations::Entity::find_by_id(id(20)).one(&db).await.unwrap();
    assert_eq!(found, Some(inserted));

    let some = organizations::COLUMN.id.is_in([id(20), id(21)]);
    assert_eq!(organizations::Entity::find().filter(some).all(&db).await.unwrap().len(), 1);
    let no_provider = vps_plans::COLUMN.provider_id.eq(None::<Id>);
    assert_eq!(vps_plans::Entity::find().filter(no_provider).all(&db).await.unwrap().len(), 1);

    let plan =
        vps_plans::ActiveModel { id: Set(id(4)), provider_id: Set(Some(id(30))), ..Default::default() };
    assert_eq!(plan.update(&db).await.unwrap().provider_id, Some(id(30)));
    let deleted = organizations::Entity::delete_by_id(id(20)).exec(&db).await.unwrap();
    assert_eq!(deleted.rows_affected, 1);
}

#[tokio::test]
async fn cycle_loads_instance_organization_and_payment() {
    let (_dir, db) = filled().await;
    let cycle = vps_billing_cycles::Entity::load()
        .with((vps_instances::Entity, organizations::Entity))
        .with(payment_transactions::Entity)
        .one(&db)
        .await
        .unwrap()
        .expect("there is one");
    let instance = cycle.vps_instance.into_option().expect("it was loaded");
    assert_eq!(instance.organization.into_option().expect("it was loaded").name, "Acme");
    assert_eq!(cycle.payment_transaction.into_option().expect("it was loaded").amount, Money(-123_456));
}

#[tokio::test]
async fn money_and_instants_compare_as_numbers() {
    let (_dir, db) = filled().await;
    for (balance, found) in [(99_999, 1), (123_456, 0), (1_000_000, 0)] {
        let richer = wallets::COLUMN.balance.gt(Money(balance));
        assert_eq!(wallets::Entity::find().filter(richer).all(&db).await.unwrap().len(), found, "{balance}");
    }
    let charge = billing_charges::Entity::find_by_id((Instant(at()), id(5))).one(&db).await.unwrap();
    assert!(charge.is_some());
}

#[tokio::test]
async fn malformed_id_is_named_in_error() {
    let (_dir, db) = filled().await;
    db.execute_unprepared("UPDATE billing_holds SET organization_id = 'acme'").await.unwrap();
    let error = billing_holds::Entity::find().one(&db).await.unwrap_err().to_string();
    assert!(error.contains("holds `acme`, which is not a hyphenated uuid"), "{error}");
}
