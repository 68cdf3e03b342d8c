-- The panel's database in its third generation (May 2026): money in hundredths of a cent, row-level security on the
-- wallet and its ledger. Names and types are the interface and are not ours to change.

-- Where the server lacks the contrib module, its own generator replaces it under the same name.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'uuid-ossp') THEN
        CREATE EXTENSION "uuid-ossp";
    ELSE
        CREATE FUNCTION uuid_generate_v4() RETURNS uuid LANGUAGE sql AS 'SELECT gen_random_uuid()';
    END IF;
END $$;

CREATE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END $$;

CREATE TABLE schema_migrations (
    id serial PRIMARY KEY,
    filename varchar(255) UNIQUE NOT NULL,
    applied_at timestamptz DEFAULT now()
);

CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    email varchar(255) UNIQUE NOT NULL,
    name varchar(255) NOT NULL,
    role varchar(50) NOT NULL DEFAULT 'user' CHECK (role IN ('admin', 'user')),
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE TABLE organizations (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    name varchar(255) NOT NULL,
    slug varchar(255) UNIQUE NOT NULL,
    owner_id uuid NOT NULL REFERENCES users (id),
    settings jsonb DEFAULT '{}',
    website varchar(255),
    address text,
    tax_id varchar(100),
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

-- No UNIQUE on the organization and no CHECK on the balance: both faults occur.
CREATE TABLE wallets (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    organization_id uuid NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    balance numeric(12, 4) DEFAULT 0,
    currency varchar(3) DEFAULT 'USD',
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE TABLE vps_plans (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
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

-- `plan_id` holds the text of a plan's id or its provider's name for it; nothing refers to it.
CREATE TABLE vps_instances (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
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
    created_by uuid REFERENCES users (id),
    notes text,
    os_disk_id varchar(255),
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);
CREATE INDEX idx_vps_instances_last_billed_at ON vps_instances (last_billed_at);

-- The wallet's ledger: a debit is negative, and a row is never updated.
CREATE TABLE payment_transactions (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
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

-- No uniqueness on (instance, period), and the history dies with the instance.
CREATE TABLE vps_billing_cycles (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
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

CREATE TABLE activity_logs (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    user_id uuid REFERENCES users (id),
    organization_id uuid,
    event_type varchar(100) NOT NULL,
    entity_type varchar(50) NOT NULL,
    entity_id varchar(255),
    message text,
    status varchar(20) DEFAULT 'info',
    metadata jsonb DEFAULT '{}',
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE TRIGGER update_users_updated_at BEFORE UPDATE ON users
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_organizations_updated_at BEFORE UPDATE ON organizations
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_wallets_updated_at BEFORE UPDATE ON wallets
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_vps_plans_updated_at BEFORE UPDATE ON vps_plans
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_vps_instances_updated_at BEFORE UPDATE ON vps_instances
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_payment_transactions_updated_at BEFORE UPDATE ON payment_transactions
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_vps_billing_cycles_updated_at BEFORE UPDATE ON vps_billing_cycles
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_activity_logs_updated_at BEFORE UPDATE ON activity_logs
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

-- Every role reads; only a transaction that claims to act for an administrator writes. The ledger has no policy for
-- UPDATE, so that its rows stay as they were written. The tables' owner is not bound by any of it.
CREATE FUNCTION current_user_is_admin() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT coalesce(current_setting('app.current_user_is_admin', true), '') = 'true'
$$;

ALTER TABLE wallets ENABLE ROW LEVEL SECURITY;
CREATE POLICY wallets_select ON wallets FOR SELECT USING (true);
CREATE POLICY wallets_insert ON wallets FOR INSERT WITH CHECK (current_user_is_admin());
CREATE POLICY wallets_update ON wallets FOR UPDATE USING (current_user_is_admin());

ALTER TABLE payment_transactions ENABLE ROW LEVEL SECURITY;
CREATE POLICY payment_transactions_select ON payment_transactions FOR SELECT USING (true);
CREATE POLICY payment_transactions_insert ON payment_transactions
    FOR INSERT WITH CHECK (current_user_is_admin());
