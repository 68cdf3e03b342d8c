-- A billed fleet: {instances} instances that paid {hours} hours each, one run and one batch an hour, five instances a wallet.
-- Each hour costs a cent, and the last of them ended within the current hour: nothing is due.

-- Foreign keys hold by construction; to check each would take most of the time.
SET session_replication_role = replica;

CREATE TEMP TABLE of_fleet AS
SELECT n, md5('instance' || n)::uuid AS instance, md5('organization' || n / 5)::uuid AS organization,
       date_trunc('hour', now()) - {hours} * interval '1 hour' - n % 3600 * interval '1 second' AS began
  FROM generate_series(0, {instances} - 1) AS n;
CREATE TEMP TABLE of_hours AS
SELECT h + 1 AS batch, md5('run' || h)::uuid AS run, h, date_trunc('hour', now()) - ({hours} - h - 1) * interval '1 hour' AS as_of
  FROM generate_series(0, {hours} - 1) AS h;
-- The ids of the rows rise with time, as those of a daemon do.
CREATE TEMP TABLE of_charges AS
SELECT f.*, h.batch, f.began + h.h * interval '1 hour' AS start,
       lpad(to_hex(h.h::bigint * 100000000 + f.n), 32, '0')::uuid AS ledger
  FROM of_hours h, of_fleet f;

INSERT INTO users (id, email, name) SELECT md5('user')::uuid, 'owner@example.com', 'Owner';
INSERT INTO organizations (id, name, slug, owner_id)
SELECT DISTINCT organization, 'customer', organization::text, md5('user')::uuid FROM of_fleet;
INSERT INTO wallets (id, organization_id, balance)
SELECT organization, organization, 1000 - 0.01 * {hours} * count(*) FROM of_fleet GROUP BY organization;
INSERT INTO vps_plans (id, name, provider_plan_id, base_price) SELECT md5('plan')::uuid, 'one', 'plan-one', 7.30;
INSERT INTO vps_instances (id, organization_id, plan_id, provider_instance_id, label, created_at, last_billed_at)
SELECT instance, organization, 'plan-one', n::text, 'vps-' || n, began, began + {hours} * interval '1 hour' FROM of_fleet;
INSERT INTO payment_transactions (id, organization_id, amount, currency, payment_method, payment_provider, status,
                                  description, metadata, created_at)
SELECT ledger, organization, -0.01, 'USD', 'wallet_debit', 'internal', 'completed', 'VPS Hourly Billing - vps-' || n || ' (1h)',
       '{"balance_before": 100.01, "balance_after": 100.00}', start + interval '1 hour'
  FROM of_charges;
INSERT INTO vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start, billing_period_end,
                                hourly_rate, total_amount, status, payment_transaction_id)
SELECT ledger, instance, organization, start, start + interval '1 hour', 0.01, 0.01, 'billed', ledger FROM of_charges;

INSERT INTO scheduler_runs (id, job, scheduled_at, status, fencing_token, daemon_id, started_at, finished_at, items, details)
SELECT run, 'billing', as_of, 'done', 1, 'seed', as_of, as_of, {instances},
       jsonb_build_object('charged', {instances}, 'hours', {instances}, 'currencies',
                          jsonb_build_object('USD', jsonb_build_object('hours', {instances}, 'amount', 0.01 * {instances})))
  FROM of_hours;
INSERT INTO billing_batches (id, run_id, fencing_token, as_of, instances, charges, held, hours, currencies, created_at)
SELECT batch, run, 1, as_of, {instances}, {instances}, 0, {instances},
       jsonb_build_object('USD', jsonb_build_object('charges', {instances}, 'hours', {instances}, 'amount', 100 * {instances})),
       as_of
  FROM of_hours;
INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate, amount, carry,
                             payment_transaction_id, currency)
SELECT start, instance, organization, batch, 1, 7300000, 100, 0, ledger, 'USD' FROM of_charges;
INSERT INTO billing_meters (instance_id, organization_id, billed_through, carry, rate, backup_rate, seen_at, opened_at)
SELECT instance, organization, began + {hours} * interval '1 hour', 0, 7300000, 0, now(), began FROM of_fleet;
INSERT INTO billing_wallet_openings (wallet_id, organization_id, opening_balance, opening_ledger)
SELECT DISTINCT organization, organization, 10000000, 0 FROM of_fleet;

DROP TABLE of_charges, of_hours, of_fleet;
RESET session_replication_role;
