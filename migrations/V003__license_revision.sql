-- A number that grows with every change of a licence, so that of two copies the newer is known. It starts from the clock in
-- microseconds, so that it grows across delete and re-insert, restore and re-creation of the table as well.

ALTER TABLE tenant_licenses ADD COLUMN IF NOT EXISTS revision BIGINT NOT NULL DEFAULT 0;

-- Rows that are older than the column, of a table that was restored perhaps: copies of them may lie in caches.
UPDATE tenant_licenses SET revision = (extract(epoch FROM clock_timestamp()) * 1000000)::BIGINT WHERE revision = 0;

CREATE OR REPLACE FUNCTION tenant_licenses_set_revision() RETURNS trigger
    LANGUAGE plpgsql AS
$$
DECLARE
    clock BIGINT := (extract(epoch FROM clock_timestamp()) * 1000000)::BIGINT;
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.revision := clock;
    ELSE
        NEW.revision := GREATEST(OLD.revision + 1, clock);
        IF NEW.updated_at IS NOT DISTINCT FROM OLD.updated_at THEN
            IF pg_typeof(NEW.updated_at) = 'timestamptz'::regtype THEN
                NEW.updated_at := now();
            ELSE
                NEW.updated_at := timezone('utc', now());
            END IF;
        END IF;
    END IF;
    RETURN NEW;
END
$$;

DROP TRIGGER IF EXISTS tenant_licenses_set_revision ON tenant_licenses;
CREATE TRIGGER tenant_licenses_set_revision
    BEFORE INSERT OR UPDATE ON tenant_licenses
    FOR EACH ROW EXECUTE FUNCTION tenant_licenses_set_revision();
