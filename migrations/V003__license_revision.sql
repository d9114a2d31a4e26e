-- A number that grows with every change of a licence, so that of two copies the newer is known. It starts from the clock in
-- microseconds, so that it grows across delete and re-insert, restore and re-creation of the table as well.

ALTER TABLE tenant_licenses ADD COLUMN IF NOT EXISTS revision BIGINT NOT NULL DEFAULT 0;

-- Rows that are older than the column, of a table that was restored perhaps: copies of them may lie in caches.
UPDATE tenant_licenses SET revision = (date_part('epoch', clock_timestamp()) * 1000000)::BIGINT WHERE revision = 0;

-- For speed: two functions instead of one that asks which operation it is, no DECLARE, and the clock by date_part (a float8,
-- exact to the microsecond until 2255) instead of extract (a numeric). Together they save a tenth of an UPDATE of many rows.
-- The names of functions are qualified, so that no search_path of a session puts others in their place.
CREATE OR REPLACE FUNCTION tenant_licenses_first_revision() RETURNS trigger
    LANGUAGE plpgsql AS
$$
BEGIN
    NEW.revision := (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000000)::BIGINT;
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION tenant_licenses_set_revision() RETURNS trigger
    LANGUAGE plpgsql AS
$$
BEGIN
    NEW.revision := GREATEST(OLD.revision + 1,
                             (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000000)::BIGINT);
    IF NEW.updated_at IS NOT DISTINCT FROM OLD.updated_at THEN
        IF pg_catalog.pg_typeof(NEW.updated_at) = 'pg_catalog.timestamptz'::pg_catalog.regtype THEN
            NEW.updated_at := pg_catalog.now();
        ELSE
            NEW.updated_at := pg_catalog.timezone('utc', pg_catalog.now());
        END IF;
    END IF;
    RETURN NEW;
END
$$;

-- Not ENABLE ALWAYS: a row that logical replication brings keeps the revision it has at its origin. A new one would make a
-- subscriber that lags behind look newer than the truth.
DROP TRIGGER IF EXISTS tenant_licenses_first_revision ON tenant_licenses;
CREATE TRIGGER tenant_licenses_first_revision
    BEFORE INSERT ON tenant_licenses
    FOR EACH ROW EXECUTE FUNCTION tenant_licenses_first_revision();

DROP TRIGGER IF EXISTS tenant_licenses_set_revision ON tenant_licenses;
CREATE TRIGGER tenant_licenses_set_revision
    BEFORE UPDATE ON tenant_licenses
    FOR EACH ROW EXECUTE FUNCTION tenant_licenses_set_revision();
