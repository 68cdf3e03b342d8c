-- The panel's core tables for SQLite. Money is INTEGER: ten-thousandths of the currency (the two hourly backup prices,
-- which have six decimals in the panel, are millionths). `total_hours` is in ten-thousandths of an hour. Ids are
-- hyphenated text, instants are RFC 3339 text in UTC. STRICT refuses a floating-point number in any of them.
-- Each hour adds a cycle for every instance, so the cycles have no index by instance and no foreign keys: the index would have to
-- be changed on one page for each instance, and grows with the history. The audit finds cycles without their instance or payment.
CREATE TABLE IF NOT EXISTS users (
    id TEXT PRIMARY KEY NOT NULL DEFAULT (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' ||
        substr('89AB', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    email TEXT UNIQUE NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL DEFAULT 'user' CHECK (role IN ('admin', 'user')),
    created_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    updated_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'))
) STRICT;

CREATE TABLE IF NOT EXISTS organizations (
    id TEXT PRIMARY KEY NOT NULL DEFAULT (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' ||
        substr('89AB', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    name TEXT NOT NULL,
    slug TEXT UNIQUE NOT NULL,
    owner_id TEXT NOT NULL REFERENCES users (id),
    settings TEXT DEFAULT '{}',
    website TEXT,
    address TEXT,
    tax_id TEXT,
    created_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    updated_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'))
) STRICT;

CREATE TABLE IF NOT EXISTS wallets (
    id TEXT PRIMARY KEY NOT NULL DEFAULT (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' ||
        substr('89AB', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    organization_id TEXT NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    balance INTEGER DEFAULT 0,
    currency TEXT DEFAULT 'USD',
    created_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    updated_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'))
) STRICT;
CREATE INDEX IF NOT EXISTS idx_wallets_organization_id ON wallets (organization_id);

CREATE TABLE IF NOT EXISTS vps_plans (
    id TEXT PRIMARY KEY NOT NULL DEFAULT (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' ||
        substr('89AB', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    name TEXT NOT NULL,
    provider_plan_id TEXT NOT NULL,
    provider_id TEXT,
    base_price INTEGER,
    markup_price INTEGER DEFAULT 0,
    backup_price_monthly INTEGER DEFAULT 0,
    backup_upcharge_monthly INTEGER DEFAULT 0,
    backup_price_hourly INTEGER DEFAULT 0,
    backup_upcharge_hourly INTEGER DEFAULT 0,
    daily_backups_enabled INTEGER DEFAULT 0,
    weekly_backups_enabled INTEGER DEFAULT 1,
    type_class TEXT,
    specifications TEXT NOT NULL DEFAULT '{}',
    active INTEGER NOT NULL DEFAULT 1,
    created_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    updated_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'))
) STRICT;

CREATE TABLE IF NOT EXISTS vps_instances (
    id TEXT PRIMARY KEY NOT NULL DEFAULT (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' ||
        substr('89AB', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    organization_id TEXT NOT NULL,
    plan_id TEXT NOT NULL,
    provider_instance_id TEXT NOT NULL,
    label TEXT NOT NULL,
    status TEXT DEFAULT 'provisioning',
    ip_address TEXT,
    configuration TEXT DEFAULT '{}',
    last_billed_at TEXT,
    backup_frequency TEXT DEFAULT 'weekly' CHECK (backup_frequency IN ('daily', 'weekly', 'none')),
    provider_type TEXT,
    provider_id TEXT,
    created_by TEXT,
    notes TEXT,
    os_disk_id TEXT,
    created_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    updated_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'))
) STRICT;
CREATE INDEX IF NOT EXISTS idx_vps_instances_organization_id ON vps_instances (organization_id);

CREATE TABLE IF NOT EXISTS payment_transactions (
    id TEXT PRIMARY KEY NOT NULL DEFAULT (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' ||
        substr('89AB', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    organization_id TEXT NOT NULL,
    amount INTEGER NOT NULL,
    currency TEXT DEFAULT 'USD',
    payment_method TEXT NOT NULL,
    payment_provider TEXT NOT NULL,
    provider_transaction_id TEXT,
    status TEXT NOT NULL CHECK (status IN ('completed', 'failed', 'cancelled', 'refunded')),
    description TEXT,
    metadata TEXT DEFAULT '{}',
    created_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    updated_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'))
) STRICT;
CREATE INDEX IF NOT EXISTS idx_payment_transactions_organization_id ON payment_transactions (organization_id);

CREATE TABLE IF NOT EXISTS vps_billing_cycles (
    id TEXT PRIMARY KEY NOT NULL DEFAULT (lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' ||
        substr('89AB', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    vps_instance_id TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    billing_period_start TEXT NOT NULL,
    billing_period_end TEXT NOT NULL,
    hourly_rate INTEGER NOT NULL,
    total_amount INTEGER NOT NULL,
    status TEXT DEFAULT 'pending' CHECK (status IN ('pending', 'billed', 'failed', 'refunded')),
    payment_transaction_id TEXT,
    metadata TEXT DEFAULT '{}',
    created_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    updated_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'))
) STRICT;

CREATE TABLE IF NOT EXISTS billing_daemon_status (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    daemon_instance_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL CHECK (status IN ('running', 'stopped', 'error')),
    last_run_at TEXT,
    last_run_success INTEGER,
    instances_billed INTEGER DEFAULT 0,
    total_amount INTEGER DEFAULT 0,
    total_hours INTEGER DEFAULT 0,
    error_message TEXT,
    started_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    heartbeat_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    metadata TEXT DEFAULT '{}',
    created_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    updated_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'))
) STRICT;
CREATE INDEX IF NOT EXISTS idx_billing_daemon_status_heartbeat_at ON billing_daemon_status (heartbeat_at);
