-- What happens to a licence while it lives: features that end before it does, add-ons, and who changed what, and why.
--
-- features_until names features that end before the licence does, as {"crm": "2026-11-24T10:00:00Z"}. They are in features as
-- well, and are judged by the clock at every request: nothing has to happen at that moment.
ALTER TABLE tenant_licenses ADD COLUMN IF NOT EXISTS features_until JSONB NOT NULL DEFAULT '{}';

-- Plain SQL that changes features and says nothing of their ends means what it says: they have none. Managed writes know
-- both, and say so: set_config('dotmac_license.managed', '1', true).
CREATE OR REPLACE FUNCTION tenant_licenses_clear_ends() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS
$$
BEGIN
    IF current_setting('dotmac_license.managed', true) IS DISTINCT FROM '1' THEN
        NEW.features_until := '{}';
    END IF;
    RETURN NEW;
END
$$;

-- As text, since features of a table made by hand may be JSON, which can't be compared.
DROP TRIGGER IF EXISTS tenant_licenses_clear_ends ON tenant_licenses;
CREATE TRIGGER tenant_licenses_clear_ends
    BEFORE UPDATE OF features ON tenant_licenses
    FOR EACH ROW WHEN (OLD.features_until::text IS DISTINCT FROM '{}'
                       AND NEW.features_until::text IS NOT DISTINCT FROM OLD.features_until::text
                       AND NEW.features::text IS DISTINCT FROM OLD.features::text)
    EXECUTE FUNCTION tenant_licenses_clear_ends();

-- What a tenant has beside its plan: trials, break-glass, features sold one by one. They survive a change of the plan. What
-- licences include is in tenant_licenses alone, written by whoever changes an add-on. No foreign key: add-ons survive the
-- rollback that drops the licences.
CREATE TABLE IF NOT EXISTS tenant_addons (
    tenant_id   UUID         NOT NULL,
    feature     VARCHAR(100) NOT NULL,
    limit_delta BIGINT,
    valid_until TIMESTAMP    NOT NULL DEFAULT 'infinity',
    reason      TEXT,
    created_at  TIMESTAMP    NOT NULL DEFAULT timezone('utc', now()),
    PRIMARY KEY (tenant_id, feature)
);

-- Who asked for what, why, and what became of it. Rows are added, never changed.
CREATE TABLE IF NOT EXISTS license_audit (
    id              UUID        PRIMARY KEY DEFAULT gen_random_uuid(),
    at              TIMESTAMP   NOT NULL DEFAULT timezone('utc', now()),
    tenant_id       UUID,                   -- null: not one tenant's
    action          VARCHAR(50) NOT NULL,
    actor           TEXT        NOT NULL,
    reason          TEXT,
    outcome         VARCHAR(50) NOT NULL,   -- 'applied', 'requested', or 'refused: ' and why
    command         JSONB,                  -- what was asked for, so that a repeated idempotency key can be held against it
    before          JSONB,                  -- the licence and its add-ons; null: there was none
    after           JSONB,
    request_id      TEXT,
    idempotency_key TEXT
);

CREATE INDEX IF NOT EXISTS idx_license_audit_tenant_at ON license_audit (tenant_id, at DESC);
CREATE UNIQUE INDEX IF NOT EXISTS idx_license_audit_idempotency_key ON license_audit (tenant_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
