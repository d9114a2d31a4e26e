-- Every change of a licence is announced on the channel dotmac_license_changes when its transaction commits, whoever makes it:
--   <tenant id>:<revision>   this licence is at least at this revision, or gone
--   *                        any licence may have changed: more than 500 rows in one statement, or TRUNCATE
--   +                        licences were added, more than 500 in one statement; none that was there has changed
-- Statement triggers with transition tables: a function once a statement costs an UPDATE of a million rows next to nothing.

-- It names no table of a schema: transition tables are found by name, whatever the search_path.
CREATE OR REPLACE FUNCTION tenant_licenses_announce() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS
$$
DECLARE
    payloads TEXT[];
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        payloads := ARRAY['*'];
    ELSIF TG_OP = 'DELETE' THEN
        payloads := ARRAY(
            SELECT concat(tenant_id, ':', GREATEST(revision + 1, (date_part('epoch', clock_timestamp()) * 1000000)::BIGINT))
              FROM changed LIMIT 501);
    ELSE
        payloads := ARRAY(SELECT concat(tenant_id, ':', revision) FROM changed LIMIT 501);
    END IF;
    IF cardinality(payloads) > 500 THEN
        payloads := ARRAY[CASE TG_OP WHEN 'INSERT' THEN '+' ELSE '*' END];
    END IF;
    PERFORM pg_notify('dotmac_license_changes', payload) FROM unnest(payloads) AS list (payload);
    RETURN NULL;
END
$$;

-- One row, by its old id or by what it is now. After 500 in one transaction it says "*", which Postgres sends once however
-- often it is said.
CREATE OR REPLACE FUNCTION tenant_licenses_announce_row() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS
$$
DECLARE
    announced INTEGER := coalesce(nullif(current_setting('dotmac_license.announced', true), ''), '0')::INTEGER;
    payload   TEXT := '*';
BEGIN
    IF announced < 500 THEN
        PERFORM set_config('dotmac_license.announced', (announced + 1)::TEXT, true);
        payload := CASE
            WHEN TG_OP = 'DELETE' THEN
                concat(OLD.tenant_id, ':',
                       GREATEST(OLD.revision + 1, (date_part('epoch', clock_timestamp()) * 1000000)::BIGINT))
            WHEN TG_ARGV[0] = 'old' THEN concat(OLD.tenant_id, ':', NEW.revision)
            ELSE concat(NEW.tenant_id, ':', NEW.revision)
        END;
    END IF;
    PERFORM pg_notify('dotmac_license_changes', payload);
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS tenant_licenses_announce_insert ON tenant_licenses;
CREATE TRIGGER tenant_licenses_announce_insert
    AFTER INSERT ON tenant_licenses REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION tenant_licenses_announce();

DROP TRIGGER IF EXISTS tenant_licenses_announce_update ON tenant_licenses;
CREATE TRIGGER tenant_licenses_announce_update
    AFTER UPDATE ON tenant_licenses REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION tenant_licenses_announce();

DROP TRIGGER IF EXISTS tenant_licenses_announce_delete ON tenant_licenses;
CREATE TRIGGER tenant_licenses_announce_delete
    AFTER DELETE ON tenant_licenses REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION tenant_licenses_announce();

DROP TRIGGER IF EXISTS tenant_licenses_announce_truncate ON tenant_licenses;
CREATE TRIGGER tenant_licenses_announce_truncate
    AFTER TRUNCATE ON tenant_licenses
    FOR EACH STATEMENT EXECUTE FUNCTION tenant_licenses_announce();

-- The id that a row had before: the transition table holds its new one only, since holding both would cost every UPDATE.
DROP TRIGGER IF EXISTS tenant_licenses_announce_old_id ON tenant_licenses;
CREATE TRIGGER tenant_licenses_announce_old_id
    AFTER UPDATE OF tenant_id ON tenant_licenses
    FOR EACH ROW WHEN (NEW.tenant_id <> OLD.tenant_id) EXECUTE FUNCTION tenant_licenses_announce_row('old');

-- Rows that a logical subscription applies, or a restore under session_replication_role = replica: ordinary triggers sleep
-- there, and a subscription fires none of statements but TRUNCATE's. Elsewhere this one sleeps.
DROP TRIGGER IF EXISTS tenant_licenses_announce_replicated ON tenant_licenses;
CREATE TRIGGER tenant_licenses_announce_replicated
    AFTER INSERT OR UPDATE OR DELETE ON tenant_licenses
    FOR EACH ROW EXECUTE FUNCTION tenant_licenses_announce_row('new');

ALTER TABLE tenant_licenses
    ENABLE REPLICA TRIGGER tenant_licenses_announce_replicated,
    ENABLE ALWAYS TRIGGER tenant_licenses_announce_old_id,
    ENABLE ALWAYS TRIGGER tenant_licenses_announce_truncate;
