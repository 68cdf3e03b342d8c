-- What the daemon's own role needs, and no more: it reads the panel, appends to the panel's ledger and cycles, moves
-- balances and anchors, and does as it likes with the daemon's tables, but does not migrate them.
DO $$
DECLARE
    relation text;
BEGIN
    FOR relation IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE format(
            'GRANT %s ON %I TO billing_run',
            CASE
                WHEN relation = 'billing_migrations' THEN 'SELECT'
                WHEN relation LIKE 'billing\_%' THEN 'SELECT, INSERT, UPDATE, DELETE'
                WHEN relation IN ('payment_transactions', 'vps_billing_cycles') THEN 'SELECT, INSERT'
                WHEN relation IN ('wallets', 'vps_instances') THEN 'SELECT, UPDATE'
                ELSE 'SELECT'
            END,
            relation);
    END LOOP;
    FOR relation IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' LOOP
        IF relation LIKE 'billing\_%' THEN
            EXECUTE format('GRANT USAGE, SELECT ON SEQUENCE %I TO billing_run', relation);
        END IF;
    END LOOP;
END $$;
