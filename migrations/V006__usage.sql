-- What is used, how much of a limit is left, and which denials there were. feature_usage stays the public record of usage;
-- the tables here say what has been written already, what replicas have taken, and what was refused.
--
-- Times that are compared with NOW() are TIMESTAMPTZ, so that queries are right in every session's time zone.

-- The indexes on feature_usage stop writes to it while they are made: moments, since nothing has filled the table before
-- this version. Where a table of other programs is large, make them beforehand under the same names, CONCURRENTLY; then they
-- are passed over. Whoever holds the table for longer than this lets the migration fail, to be run again.
SET lock_timeout = '5s';

-- Each batch and each lease, put there by the transaction that does it: what is asked for again after a lost answer is done
-- once. `prune` removes them when nobody asks again any more.
CREATE TABLE IF NOT EXISTS usage_batches (
    id      UUID        PRIMARY KEY,
    granted BIGINT,                      -- of a lease: how much
    at      TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS idx_usage_batches_at ON usage_batches (at);

-- Limits, by tenant, feature and period: what is used, and what replicas have taken to use without asking again. No update
-- touches an index, and half of each page is kept free, so that rows that change all the time stay where they are.
CREATE TABLE IF NOT EXISTS usage_windows (
    tenant_id   UUID         NOT NULL,
    feature     VARCHAR(100) NOT NULL,
    window_kind VARCHAR(20)  NOT NULL,            -- day, month, anchored, lifetime
    start_date  DATE         NOT NULL,            -- its first day, UTC; 0001-01-01 for a lifetime
    end_date    DATE         NOT NULL,            -- the day after its last; infinity for a lifetime
    used        BIGINT       NOT NULL DEFAULT 0 CHECK (used >= 0),
    reserved    BIGINT       NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    granted     BIGINT       NOT NULL DEFAULT 0,  -- the latest lease
    announced   INTEGER      NOT NULL DEFAULT 0,  -- the highest threshold that was announced, in percent
    PRIMARY KEY (tenant_id, feature, window_kind, start_date)
) WITH (fillfactor = 50);

-- Those that a day falls into, and those that are over.
CREATE INDEX IF NOT EXISTS idx_usage_windows_tenant_end ON usage_windows (tenant_id, feature, end_date);
CREATE INDEX IF NOT EXISTS idx_usage_windows_end ON usage_windows (end_date);

-- The day on which the anchored windows of a tenant begin. Nothing moves it.
CREATE TABLE IF NOT EXISTS usage_anchors (
    tenant_id  UUID        PRIMARY KEY,
    anchor     DATE        NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- Denials: one row for each tenant, feature, reason and minute, over all replicas. No foreign key: denials for want of a
-- licence are among them. Each row is written by several replicas within seconds: room in the page, and no index on `count`.
CREATE TABLE IF NOT EXISTS feature_denial_events (
    id              UUID         PRIMARY KEY,
    tenant_id       UUID         NOT NULL,
    feature_name    VARCHAR(100) NOT NULL,
    reason          VARCHAR(50)  NOT NULL,
    minute          TIMESTAMPTZ  NOT NULL,
    count           BIGINT       NOT NULL DEFAULT 1,
    clicked_upgrade BOOLEAN      NOT NULL DEFAULT false,  -- somebody followed the way to an upgrade within 24 hours
    clicked_at      TIMESTAMPTZ,
    upgraded_at     TIMESTAMPTZ,                          -- when the tenant got the feature, within 30 days
    created_at      TIMESTAMPTZ  NOT NULL DEFAULT now()
) WITH (fillfactor = 90, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

-- For the share of denials that led to a click since some day: an index alone answers it, as long as vacuum keeps up, which
-- the settings above see to.
CREATE INDEX IF NOT EXISTS idx_feature_denial_events_created ON feature_denial_events (created_at)
    INCLUDE (clicked_upgrade);
CREATE INDEX IF NOT EXISTS idx_feature_denial_events_tenant ON feature_denial_events (tenant_id, feature_name, minute);

-- Denials that there would have been if their tenants were enforced.
CREATE TABLE IF NOT EXISTS shadow_denial_events (
    id           UUID         PRIMARY KEY,
    tenant_id    UUID         NOT NULL,
    feature_name VARCHAR(100) NOT NULL,
    reason       VARCHAR(50)  NOT NULL,
    minute       TIMESTAMPTZ  NOT NULL,
    count        BIGINT       NOT NULL DEFAULT 1,
    created_at   TIMESTAMPTZ  NOT NULL DEFAULT now()
) WITH (fillfactor = 90, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

CREATE INDEX IF NOT EXISTS idx_shadow_denial_events_created ON shadow_denial_events (created_at);

-- The latest click and the latest upgrade by tenant and feature: denials that are written later, by another replica, are
-- marked when they are.
CREATE TABLE IF NOT EXISTS upgrade_marks (
    tenant_id   UUID         NOT NULL,
    feature     VARCHAR(100) NOT NULL,
    clicked_at  TIMESTAMPTZ,
    upgraded_at TIMESTAMPTZ,
    PRIMARY KEY (tenant_id, feature)
);

-- For `prune`. Days repeat, so that it stays small. Not BRIN: rows that fill the gaps of removed ones lie in no order.
CREATE INDEX IF NOT EXISTS idx_feature_usage_date ON feature_usage (usage_date);

DO
$$
BEGIN
    -- Rows are upserted by their id. A table made by hand may lack the key.
    IF NOT EXISTS (SELECT FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                    WHERE i.indrelid = 'feature_usage'::regclass AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1
                      AND i.indpred IS NULL AND a.attname = 'id') THEN
        CREATE UNIQUE INDEX idx_feature_usage_id ON feature_usage (id);
    END IF;
    -- Today's rows are updated every few seconds: with room in their pages no index has to follow. An owner's own choice stays.
    IF NOT EXISTS (SELECT FROM pg_class, unnest(reloptions) AS option
                    WHERE oid = 'feature_usage'::regclass AND option LIKE 'fillfactor=%') THEN
        ALTER TABLE feature_usage SET (fillfactor = 80);
    END IF;
END
$$;

RESET lock_timeout;
