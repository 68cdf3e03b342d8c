-- The panel guard on the wallet ledger writes to tables that this migration drops: without them the panel could debit nothing.
DO $$
DECLARE
    owner text;
BEGIN
    SELECT pg_get_userbyid(c.relowner) INTO owner
      FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
     WHERE c.oid = to_regclass('payment_transactions') AND t.tgname = 'billing_panel_guard';
    IF owner IS NOT NULL THEN
        IF NOT pg_has_role(owner, 'USAGE') THEN
            RAISE EXCEPTION 'cannot remove the panel guard from payment_transactions: its owner is %', owner
                USING ERRCODE = 'insufficient_privilege',
                      HINT = format('Run `billing-daemon guard remove` as %s first.', owner);
        END IF;
        DROP TRIGGER billing_panel_guard ON payment_transactions;
        DROP TRIGGER IF EXISTS billing_panel_guard_balance ON wallets;
    END IF;
    DROP FUNCTION IF EXISTS billing_panel_guard(), billing_panel_guard_balance();
END $$;
