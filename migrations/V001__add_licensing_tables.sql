-- What each tenant has bought, and what it has used. Both tables are public: other programs read and write them in plain SQL.
-- All timestamps are UTC.

CREATE TABLE IF NOT EXISTS tenant_licenses (
    tenant_id    UUID        PRIMARY KEY,
    plan_tier    VARCHAR(50) NOT NULL DEFAULT 'starter',
    features     JSONB       NOT NULL DEFAULT '{}',
    usage_limits JSONB       NOT NULL DEFAULT '{}',
    valid_from   TIMESTAMP   NOT NULL DEFAULT CURRENT_TIMESTAMP,
    valid_until  TIMESTAMP   NOT NULL DEFAULT CURRENT_TIMESTAMP + INTERVAL '30 days',
    auto_renew   BOOLEAN     DEFAULT true,
    created_at   TIMESTAMP   DEFAULT CURRENT_TIMESTAMP,
    updated_at   TIMESTAMP   DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE IF NOT EXISTS feature_usage (
    id           UUID         PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id    UUID         NOT NULL REFERENCES tenant_licenses (tenant_id),
    feature_name VARCHAR(100) NOT NULL,
    usage_count  INTEGER      DEFAULT 0,
    usage_date   DATE         NOT NULL,
    created_at   TIMESTAMP    DEFAULT CURRENT_TIMESTAMP
);

CREATE INDEX IF NOT EXISTS idx_feature_usage_tenant_date ON feature_usage (tenant_id, usage_date);
