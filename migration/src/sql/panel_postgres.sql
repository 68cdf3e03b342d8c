-- The panel's core tables, created only where they are missing. A live panel's tables are not even locked: `IF NOT EXISTS` alone
-- would need the owner's rights for an existing index, and would not find a table in another schema of the search path.
DO $$ BEGIN
IF to_regclass('users') IS NULL THEN
    CREATE TABLE users (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        email varchar(255) UNIQUE NOT NULL,
        name varchar(255) NOT NULL,
        role varchar(50) NOT NULL DEFAULT 'user' CHECK (role IN ('admin', 'user')),
        created_at timestamptz DEFAULT now(),
        updated_at timestamptz DEFAULT now()
    );
END IF;

IF to_regclass('organizations') IS NULL THEN
    CREATE TABLE organizations (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        name varchar(255) NOT NULL,
        slug varchar(255) UNIQUE NOT NULL,
        owner_id uuid NOT NULL REFERENCES users (id),
        settings jsonb DEFAULT '{}',
        website varchar(255),
        address text,
        tax_id varchar(255),
        created_at timestamptz DEFAULT now(),
        updated_at timestamptz DEFAULT now()
    );
END IF;

IF to_regclass('wallets') IS NULL THEN
    CREATE TABLE wallets (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        organization_id uuid NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
        balance numeric(12, 4) DEFAULT 0,
        currency varchar(3) DEFAULT 'USD',
        created_at timestamptz DEFAULT now(),
        updated_at timestamptz DEFAULT now()
    ) WITH (fillfactor = 80);
    CREATE INDEX idx_wallets_organization_id ON wallets (organization_id);
END IF;

IF to_regclass('vps_plans') IS NULL THEN
    CREATE TABLE vps_plans (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        name varchar(255) NOT NULL,
        provider_plan_id varchar(255) NOT NULL,
        provider_id uuid,
        base_price numeric(10, 2),
        markup_price numeric(10, 2) DEFAULT 0,
        backup_price_monthly numeric(10, 2) DEFAULT 0,
        backup_upcharge_monthly numeric(10, 2) DEFAULT 0,
        backup_price_hourly numeric(10, 6) DEFAULT 0,
        backup_upcharge_hourly numeric(10, 6) DEFAULT 0,
        daily_backups_enabled boolean DEFAULT false,
        weekly_backups_enabled boolean DEFAULT true,
        type_class varchar(50),
        specifications jsonb NOT NULL DEFAULT '{}',
        active boolean NOT NULL DEFAULT true,
        created_at timestamptz DEFAULT now(),
        updated_at timestamptz DEFAULT now()
    );
END IF;

IF to_regclass('vps_instances') IS NULL THEN
    CREATE TABLE vps_instances (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        organization_id uuid NOT NULL,
        plan_id varchar(255) NOT NULL,
        provider_instance_id varchar(255) NOT NULL,
        label varchar(255) NOT NULL,
        status varchar(50) DEFAULT 'provisioning',
        ip_address inet,
        configuration jsonb DEFAULT '{}',
        last_billed_at timestamptz,
        backup_frequency varchar(20) DEFAULT 'weekly' CHECK (backup_frequency IN ('daily', 'weekly', 'none')),
        provider_type varchar(50),
        provider_id uuid,
        created_by uuid,
        notes text,
        os_disk_id varchar(255),
        created_at timestamptz DEFAULT now(),
        updated_at timestamptz DEFAULT now()
    ) WITH (fillfactor = 80);
    -- A panel also has an index on last_billed_at. Billing does not read it, and each charge would then write to every index of the
    -- instance instead of making a heap-only update.
    CREATE INDEX idx_vps_instances_organization_id ON vps_instances (organization_id);
END IF;

IF to_regclass('payment_transactions') IS NULL THEN
    CREATE TABLE payment_transactions (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        organization_id uuid NOT NULL,
        amount numeric(12, 4) NOT NULL,
        currency varchar(3) DEFAULT 'USD',
        payment_method varchar(50) NOT NULL,
        payment_provider varchar(50) NOT NULL,
        provider_transaction_id varchar(255),
        status varchar(50) NOT NULL CHECK (status IN ('completed', 'failed', 'cancelled', 'refunded')),
        description text,
        metadata jsonb DEFAULT '{}',
        created_at timestamptz DEFAULT now(),
        updated_at timestamptz DEFAULT now()
    );
    CREATE INDEX idx_payment_transactions_organization_id ON payment_transactions (organization_id);
END IF;

IF to_regclass('vps_billing_cycles') IS NULL THEN
    CREATE TABLE vps_billing_cycles (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        vps_instance_id uuid NOT NULL REFERENCES vps_instances (id) ON DELETE CASCADE,
        organization_id uuid NOT NULL,
        billing_period_start timestamptz NOT NULL,
        billing_period_end timestamptz NOT NULL,
        hourly_rate numeric(10, 4) NOT NULL,
        total_amount numeric(12, 4) NOT NULL,
        status varchar(50) DEFAULT 'pending' CHECK (status IN ('pending', 'billed', 'failed', 'refunded')),
        payment_transaction_id uuid REFERENCES payment_transactions (id),
        metadata jsonb DEFAULT '{}',
        created_at timestamptz DEFAULT now(),
        updated_at timestamptz DEFAULT now()
    );
    CREATE INDEX idx_vps_billing_cycles_vps_instance_id ON vps_billing_cycles (vps_instance_id);
END IF;

IF to_regclass('billing_daemon_status') IS NULL THEN
    CREATE TABLE billing_daemon_status (
        id serial PRIMARY KEY,
        daemon_instance_id varchar(255) NOT NULL UNIQUE,
        status varchar(50) NOT NULL CHECK (status IN ('running', 'stopped', 'error')),
        last_run_at timestamptz,
        last_run_success boolean,
        instances_billed integer DEFAULT 0,
        total_amount numeric(14, 4) DEFAULT 0,
        total_hours numeric(14, 4) DEFAULT 0,
        error_message text,
        started_at timestamptz DEFAULT now(),
        heartbeat_at timestamptz DEFAULT now(),
        metadata jsonb DEFAULT '{}',
        created_at timestamptz DEFAULT now(),
        updated_at timestamptz DEFAULT now()
    );
    CREATE INDEX idx_billing_daemon_status_heartbeat_at ON billing_daemon_status (heartbeat_at);
END IF;
END $$;
