-- For each wallet that another program than billing updates: notes organization, overwritten and written balance until the end of
-- the transaction. The panel reads a balance without a lock and writes it back, less its debit; the debit is compared with this.
DECLARE
    overwritten jsonb;
BEGIN
    -- A transaction of billing carries its fencing token.
    IF coalesce(current_setting('billing.fencing_token', true), '') <> '' THEN
        RETURN NEW;
    END IF;
    -- As JSON, for the panel may add, drop or retype columns: see the function on the ledger. An update of other columns is noted
    -- as well, since a row trigger cannot distinguish it from one that writes an unchanged balance.
    overwritten := pg_catalog.to_jsonb(OLD);
    PERFORM pg_catalog.set_config('billing.overwritten_balance', pg_catalog.concat_ws(' ', overwritten ->> 'organization_id'::text,
        coalesce(overwritten ->> 'balance'::text, 'null'), coalesce(pg_catalog.to_jsonb(NEW) ->> 'balance'::text, 'null')), true);
    RETURN NEW;
END
