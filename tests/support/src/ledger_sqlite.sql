-- The same fleet as in ledger_postgres.sql.

BEGIN IMMEDIATE;

CREATE TEMP TABLE of_fleet AS
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {instances} - 1),
     ids AS (SELECT n, hex(randomblob(16)) AS id FROM numbers)
SELECT n, lower(substr(id, 1, 8) || '-' || substr(id, 9, 4) || '-' || substr(id, 13, 4) || '-' || substr(id, 17, 4) || '-'
                || substr(id, 21)) AS instance,
       printf('00000000-0000-4000-8000-%012x', n / 5 * 7919) AS organization,
       unixepoch() / 3600 * 3600 - {hours} * 3600 - n % 3600 AS began
  FROM ids;
CREATE TEMP TABLE of_hours AS
WITH RECURSIVE hours (h) AS (SELECT 0 UNION ALL SELECT h + 1 FROM hours WHERE h < {hours} - 1)
SELECT h + 1 AS batch, printf('00000000-0000-4000-9000-%012x', h) AS run, h,
       unixepoch() / 3600 * 3600 - ({hours} - h - 1) * 3600 AS as_of
  FROM hours;
-- The ids of the rows rise with time, as those of a daemon do.
CREATE TEMP TABLE of_charges AS
SELECT f.*, h.batch, f.began + h.h * 3600 AS start, printf('00000000-0000-4000-a000-%012x', h.h * 100000000 + f.n) AS ledger
  FROM of_hours h CROSS JOIN of_fleet f;

INSERT INTO users (id, email, name) VALUES ('00000000-0000-4000-b000-000000000000', 'owner@example.com', 'Owner');
INSERT INTO organizations (id, name, slug, owner_id)
SELECT DISTINCT organization, 'customer', organization, '00000000-0000-4000-b000-000000000000' FROM of_fleet;
INSERT INTO wallets (id, organization_id, balance)
SELECT organization, organization, 10000000 - 100 * {hours} * count(*) FROM of_fleet GROUP BY organization;
INSERT INTO vps_plans (id, name, provider_plan_id, base_price)
VALUES ('00000000-0000-4000-c000-000000000000', 'one', 'plan-one', 73000);
INSERT INTO vps_instances (id, organization_id, plan_id, provider_instance_id, label, created_at, last_billed_at)
SELECT instance, organization, 'plan-one', n, 'vps-' || n, strftime('%Y-%m-%dT%H:%M:%f000+00:00', began, 'unixepoch'),
       strftime('%Y-%m-%dT%H:%M:%f000+00:00', began + {hours} * 3600, 'unixepoch')
  FROM of_fleet;
INSERT INTO payment_transactions (id, organization_id, amount, currency, payment_method, payment_provider, status,
                                  description, metadata, created_at)
SELECT ledger, organization, -100, 'USD', 'wallet_debit', 'internal', 'completed', 'VPS Hourly Billing - vps-' || n || ' (1h)',
       '{"balance_before": 100.01, "balance_after": 100.00}', strftime('%Y-%m-%dT%H:%M:%f000+00:00', start + 3600, 'unixepoch')
  FROM of_charges;
INSERT INTO vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start, billing_period_end,
                                hourly_rate, total_amount, status, payment_transaction_id)
SELECT ledger, instance, organization, strftime('%Y-%m-%dT%H:%M:%f000+00:00', start, 'unixepoch'),
       strftime('%Y-%m-%dT%H:%M:%f000+00:00', start + 3600, 'unixepoch'), 100, 100, 'billed', ledger
  FROM of_charges;

INSERT INTO scheduler_runs (id, job, scheduled_at, status, fencing_token, daemon_id, started_at, finished_at, items, details)
SELECT run, 'billing', as_of * 1000000, 'done', 1, 'seed', as_of * 1000000, as_of * 1000000, {instances},
       json_object('charged', {instances}, 'hours', {instances}, 'currencies',
                   json_object('USD', json_object('hours', {instances}, 'amount', printf('%.2f', 0.01 * {instances}))))
  FROM of_hours;
INSERT INTO billing_batches (id, run_id, fencing_token, as_of, instances, charges, held, hours, currencies, created_at)
SELECT batch, run, 1, as_of * 1000000, {instances}, {instances}, 0, {instances},
       json_object('USD', json_object('charges', {instances}, 'hours', {instances}, 'amount', 100 * {instances})),
       as_of * 1000000
  FROM of_hours;
INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate, amount, carry,
                             payment_transaction_id, currency)
SELECT start * 1000000, instance, organization, batch, 1, 7300000, 100, 0, ledger, 'USD' FROM of_charges ORDER BY batch, instance;
INSERT INTO billing_meters (instance_id, organization_id, billed_through, carry, rate, backup_rate, seen_at, opened_at)
SELECT instance, organization, (began + {hours} * 3600) * 1000000, 0, 7300000, 0, unixepoch() * 1000000, began * 1000000
  FROM of_fleet;
INSERT INTO billing_wallet_openings (wallet_id, organization_id, opening_balance, opening_ledger)
SELECT DISTINCT organization, organization, 10000000, 0 FROM of_fleet;

DROP TABLE of_charges;
DROP TABLE of_hours;
DROP TABLE of_fleet;
COMMIT;
