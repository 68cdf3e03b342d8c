-- For each row that enters the wallets' ledger. An internal debit of hours by a transaction that does not carry the current fencing
-- token goes into the charge ledger or is rolled back; the charge for a new instance only must not overwrite a balance that it did
-- not read. Every other row passes.
-- The panel's migrations may add, drop and retype columns. So the columns of the row are read as JSON: PostgreSQL refuses to retype
-- a column that `WHEN` or `UPDATE OF` names, and `NEW.column` keeps the type that it had at the first call of a session and fails
-- after a change. A new column of another table may have the name of a variable.
-- It runs with its owner's rights: where a built-in function or operator does not fit exactly, another one that was created next to
-- the tables could take its place. So these are named in full, or their arguments are cast until they fit.
#variable_conflict use_variable
DECLARE
    debit jsonb;
    description text;
    organization uuid;
    ours record;
    kept boolean := false;
    alone boolean := false;
    tries integer := 0;
    noted text[];
    balance_before jsonb;
    matched text[];
    taken numeric;
    instances uuid[];
    panel_anchor timestamptz;
    created timestamptz;
    watermark timestamptz;
    carried bigint;
    charge_start timestamptz;
    charge_end timestamptz;
    batch bigint;
    code text;
BEGIN
    -- This transaction has passed already, and keeps the token current until it ends.
    IF current_setting('billing.guard_passed', true) = txid_current()::text THEN
        RETURN NEW;
    END IF;
    debit := pg_catalog.to_jsonb(NEW);
    description := debit ->> 'description'::text;
    IF debit ->> 'payment_method'::text IS DISTINCT FROM 'wallet_debit'
       OR debit ->> 'payment_provider'::text IS DISTINCT FROM 'internal'
       OR description IS NULL
       OR NOT (description LIKE 'VPS Hourly Billing - %' OR description LIKE 'VPS Creation - %') THEN
        RETURN NEW;
    END IF;
    organization := (debit ->> 'organization_id'::text)::uuid;

    IF description LIKE 'VPS Hourly Billing - %' THEN
        -- Ours: it carries the current token, which stays current until it ends. Its next rows need no check.
        PERFORM FROM scheduler_fencing f
          WHERE f.job = 'billing' AND f.fencing_token::text = current_setting('billing.fencing_token', true) FOR SHARE;
        IF FOUND THEN
            PERFORM set_config('billing.guard_passed', txid_current()::text, true);
            RETURN NEW;
        END IF;

        -- The panel's biller, or code of ours that forgot its token. Checks, locks the row, and checks again.
        LOOP
            SELECT f.fencing_token AS number, f.last_success_at, pg_catalog.make_interval(secs => f.hand_back_after_seconds) AS silence,
                   coalesce(s.fencing_token, 0) AS claimed, coalesce(s.fencing_token = f.fencing_token, false) AS in_force,
                   f.halt IS NOT NULL AS halted
              INTO ours
              FROM scheduler_fencing f LEFT JOIN scheduler_jobs s ON s.job = f.job
             WHERE f.job = 'billing';
            IF NOT FOUND THEN
                RAISE EXCEPTION 'the panel guard has lost its row in scheduler_fencing, so no program may debit an hour'
                    USING ERRCODE = 'BF002', HINT = 'Run `billing-daemon guard install` again.';
            END IF;
            IF ours.halted THEN
                RAISE EXCEPTION 'billing of this database is halted, because charges that were committed are missing'
                    USING ERRCODE = 'BF001',
                          HINT = 'Nothing was taken from the wallet. This ends with `billing-daemon accept-restore`.';
            END IF;
            IF ours.last_success_at > clock_timestamp() - ours.silence THEN
                RAISE EXCEPTION 'billing-daemon charges the hours of this database: its last success was % ago, and the panel may charge them '
                                'after % without one',
                        pg_catalog.date_trunc('second', clock_timestamp() - ours.last_success_at), ours.silence
                    USING ERRCODE = 'BF001', HINT = 'Nothing was taken from the wallet. This ends with the last daemon.';
            END IF;
            EXIT WHEN kept;
            IF NOT ours.in_force THEN
                -- No batch can be running, so every holder of the row releases it without waiting for this transaction.
                PERFORM FROM scheduler_fencing f WHERE f.job = 'billing' FOR SHARE;
                kept := true;
            ELSE
                -- A batch of ours may hold the row and wait for the wallet that this transaction has locked: never wait for it.
                PERFORM FROM scheduler_fencing f WHERE f.job = 'billing' FOR NO KEY UPDATE SKIP LOCKED;
                kept := FOUND;
                alone := FOUND;
                IF NOT kept THEN
                    tries := tries + 1;
                    IF tries > 40 THEN
                        RAISE EXCEPTION 'billing-daemon is charging the hours of this database right now'
                            USING ERRCODE = 'BF001', HINT = 'Nothing was taken from the wallet. Try again when it is done.';
                    END IF;
                    PERFORM pg_sleep(0.01);
                END IF;
            END IF;
        END LOOP;
        IF ours.in_force AND NOT alone THEN
            RAISE EXCEPTION 'billing-daemon has just begun to charge the hours of this database again'
                USING ERRCODE = 'BF001', HINT = 'Nothing was taken from the wallet. Try again when it is done.';
        END IF;
    END IF;

    -- The panel wrote back what it had read without a lock, less its debit. A charge or a payment that came in between is gone from
    -- the wallet then: what it read, by its own account, must be what it overwrote. Every known panel writes `balance_before` with
    -- every debit; where it is missing, the wallet must have changed by the amount of the debit.
    noted := pg_catalog.string_to_array(current_setting('billing.overwritten_balance', true), ' ');
    balance_before := debit -> 'metadata'::text -> 'balance_before'::text;
    IF noted[1] = organization::text
       AND (CASE WHEN balance_before IS NOT NULL
                 THEN balance_before <> coalesce(pg_catalog.to_jsonb(nullif(noted[2], 'null')::numeric), 'null'::jsonb)
                 ELSE nullif(noted[3], 'null')::numeric
                      IS DISTINCT FROM nullif(noted[2], 'null')::numeric + (debit ->> 'amount'::text)::numeric END) THEN
        RAISE EXCEPTION 'the wallet of organization % held % when it was read, and % when it was written',
                organization, coalesce(balance_before::text, 'an unknown amount'), noted[2]
            USING ERRCODE = 'BF001', HINT = 'Nothing was taken from the wallet. Read its balance again.';
    END IF;
    IF description LIKE 'VPS Creation - %' THEN
        RETURN NEW;
    END IF;

    IF ours.in_force THEN
        -- No process has this token, so a daemon that resumes later is rejected until it claims the job again. Once is enough.
        ours.number := 1::bigint + greatest(ours.number, ours.claimed);
        UPDATE scheduler_fencing f SET fencing_token = ours.number WHERE f.job = 'billing';
    END IF;
    -- A panel that hangs before its commit would keep every daemon out.
    IF current_setting('idle_in_transaction_session_timeout')::interval NOT BETWEEN '1 ms' AND '30 s' THEN
        PERFORM set_config('idle_in_transaction_session_timeout', '30s', true);
    END IF;

    matched := pg_catalog.regexp_match(description, '^VPS Hourly Billing - (.*) \(([0-9]{1,6})h\)$');
    IF matched IS NULL OR matched[2]::integer < 1 THEN
        RAISE EXCEPTION 'the debit `%` does not name an instance and its hours', description
            USING ERRCODE = 'BF002', HINT = 'Describe it as `VPS Hourly Billing - {label} ({hours}h)`.';
    END IF;
    taken := -(debit ->> 'amount'::text)::numeric * 10000.0;
    IF debit ->> 'status'::text IS DISTINCT FROM 'completed' OR taken IS NULL
       OR NOT (taken >= 0.0 AND taken < 10000000000000.0 AND taken = trunc(taken)) THEN
        RAISE EXCEPTION 'the debit `%` of % with status % is not a completed payment',
                description, debit ->> 'amount'::text, debit ->> 'status'::text
            USING ERRCODE = 'BF002', HINT = 'Book a debit as completed, with an amount of zero or less.';
    END IF;

    SELECT pg_catalog.array_agg(v.id), pg_catalog.min(v.last_billed_at), pg_catalog.min(v.created_at)
      INTO instances, panel_anchor, created
      FROM (SELECT i.id, i.last_billed_at, i.created_at
              FROM vps_instances i
             WHERE i.organization_id = organization AND i.label::text = matched[1]
             ORDER BY i.id LIMIT 2 FOR NO KEY UPDATE) AS v;
    IF pg_catalog.cardinality(instances) IS DISTINCT FROM 1 THEN
        RAISE EXCEPTION '% of organization % is called `%`, so the debit `%` cannot be charged to one',
                CASE WHEN instances IS NULL THEN 'no instance' ELSE 'more than one instance' END,
                organization, matched[1], description
            USING ERRCODE = 'BF002', HINT = 'Give each instance of an organization a different label.';
    END IF;
    SELECT m.billed_through, m.carry INTO watermark, carried
      FROM billing_meters m WHERE m.instance_id = instances[1] FOR NO KEY UPDATE;

    -- As a run of ours begins: with a meter the watermark decides, or the panel where it is further; without one no hour
    -- before the creation is charged.
    charge_start := CASE WHEN watermark IS NOT NULL THEN greatest(panel_anchor, watermark)
                         WHEN panel_anchor + pg_catalog.make_interval(secs => 1::double precision) <= created THEN created
                         ELSE coalesce(panel_anchor, created) END;
    charge_end := charge_start + pg_catalog.make_interval(hours => matched[2]::integer);
    IF charge_start IS NULL OR NOT isfinite(charge_start) OR charge_end > clock_timestamp() THEN
        RAISE EXCEPTION 'the debit `%` pays for hours that are not due: instance % is charged up to %',
                description, instances[1], coalesce(charge_start::text, 'no known time')
            USING ERRCODE = 'BF002',
                  HINT = 'Nothing was taken from the wallet. Where last_billed_at is behind, billing-daemon repairs it.';
    END IF;

    code := debit ->> 'currency'::text;
    IF code IS NULL OR NOT code ~ '^[A-Z]{3}$'::text THEN
        -- ISO 4217's code for no currency.
        code := 'XXX';
    END IF;
    INSERT INTO billing_batches (run_id, fencing_token, as_of, instances, charges, held, hours, currencies)
    VALUES ((debit ->> 'id'::text)::uuid, ours.number, clock_timestamp(), 1, 1, 0, matched[2]::integer,
            pg_catalog.jsonb_build_object(code, pg_catalog.jsonb_build_object(
                'charges'::text, 1, 'hours'::text, matched[2]::integer, 'amount'::text, taken::bigint)))
    RETURNING id INTO batch;
    INSERT INTO billing_charges (period_start, instance_id, organization_id, batch_id, hours, rate, amount, carry,
                                 payment_transaction_id, currency, by_panel)
    VALUES (charge_start, instances[1], organization, batch, matched[2]::integer,
            trunc(taken * 73000.0 / matched[2]::numeric), taken, coalesce(carried, 0),
            (debit ->> 'id'::text)::uuid, code, true);
    IF watermark IS NULL THEN
        INSERT INTO billing_meters (instance_id, organization_id, billed_through, carry, seen_at, opened_at, panel_debited_at)
        VALUES (instances[1], organization, charge_end, 0, clock_timestamp(), clock_timestamp(), clock_timestamp());
    ELSE
        UPDATE billing_meters m
           SET organization_id = organization, billed_through = charge_end, seen_at = clock_timestamp(),
               panel_debited_at = clock_timestamp()
         WHERE m.instance_id = instances[1];
    END IF;
    RETURN NEW;
END
