-- For each balance that somebody else than us writes: notes, until the end of that transaction, what it overwrites. The panel reads
-- a balance without a lock and writes it back, less its debit; the debit tells what was read, and is held against this.
BEGIN
    PERFORM pg_catalog.set_config('billing.overwritten', pg_catalog.concat(OLD.organization_id, ' ', OLD.balance), true);
    RETURN NEW;
END
