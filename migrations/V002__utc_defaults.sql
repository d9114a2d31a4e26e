-- CURRENT_TIMESTAMP in a TIMESTAMP column is the local time of the session. On a server in Asia/Tokyo a new licence would
-- begin nine hours from now, and its tenant would be denied until then. From here on, defaults are UTC in every session.
--
-- Tables that were there before V001, made by hand or by another program, get what they lack: columns and defaults. What
-- they have stays as it is: rows, types (TIMESTAMPTZ is as good), and defaults of their own.

DO
$$
DECLARE
    wanted RECORD;
    found  RECORD;
    utc    TEXT;
    value  TEXT;
BEGIN
    FOR wanted IN
        SELECT *
          FROM (VALUES
            ('tenant_licenses', 'plan_tier',    'VARCHAR(50) NOT NULL', '''starter'''),
            ('tenant_licenses', 'features',     'JSONB NOT NULL',       '''{}'''),
            ('tenant_licenses', 'usage_limits', 'JSONB NOT NULL',       '''{}'''),
            ('tenant_licenses', 'valid_from',   'TIMESTAMP NOT NULL',   'UTC'),
            ('tenant_licenses', 'valid_until',  'TIMESTAMP NOT NULL',   'UTC + INTERVAL ''30 days'''),
            ('tenant_licenses', 'auto_renew',   'BOOLEAN',              'true'),
            ('tenant_licenses', 'created_at',   'TIMESTAMP',            'UTC'),
            ('tenant_licenses', 'updated_at',   'TIMESTAMP',            'UTC'),
            ('feature_usage',   'id',           'UUID NOT NULL',        'gen_random_uuid()'),
            ('feature_usage',   'usage_count',  'INTEGER',              '0'),
            ('feature_usage',   'created_at',   'TIMESTAMP',            'UTC')
          ) AS list (of_table, of_column, of_type, of_default)
    LOOP
        SELECT a.atttypid, pg_get_expr(d.adbin, d.adrelid) AS expression INTO found
          FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attrelid = wanted.of_table::regclass AND a.attname = wanted.of_column AND NOT a.attisdropped;
        utc := CASE found.atttypid WHEN 'timestamptz'::regtype THEN 'now()' ELSE 'timezone(''utc'', now())' END;
        value := replace(wanted.of_default, 'UTC', utc);
        IF found.atttypid IS NULL THEN
            EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s DEFAULT %s',
                           wanted.of_table, wanted.of_column, wanted.of_type, value);
        -- None, or V001's own.
        ELSIF found.expression IS NULL OR wanted.of_default LIKE 'UTC%'
              AND found.expression ~ '^\(?(CURRENT_TIMESTAMP|LOCALTIMESTAMP|now\(\))( \+ ''30 days''::interval\))?$' THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s',
                           wanted.of_table, wanted.of_column, value);
        END IF;
    END LOOP;
END
$$;

-- Rows that were dated into the future by local time: nothing is created in the future, so created_at proves it, and a
-- valid_from within a minute of it was the time of writing, chosen by nobody. TIMESTAMPTZ can't be wrong in this way.
DO
$$
BEGIN
    IF (SELECT bool_and(atttypid = 'timestamp'::regtype) FROM pg_attribute
         WHERE attrelid = 'tenant_licenses'::regclass AND attname IN ('valid_from', 'created_at')) THEN
        UPDATE tenant_licenses
           SET valid_from = timezone('utc', now()),
               created_at = timezone('utc', now())
         WHERE created_at > timezone('utc', now())
           AND valid_from > timezone('utc', now())
           AND valid_from BETWEEN created_at - INTERVAL '1 minute' AND created_at + INTERVAL '1 minute';
    END IF;
END
$$;
