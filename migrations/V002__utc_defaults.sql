-- CURRENT_TIMESTAMP in a TIMESTAMP column is the local time of the session. On a server in Asia/Tokyo a new licence would
-- begin nine hours from now, and its tenant would be denied until then. From here on, defaults are UTC in every session.

ALTER TABLE tenant_licenses
    ALTER COLUMN valid_from  SET DEFAULT timezone('utc', now()),
    ALTER COLUMN valid_until SET DEFAULT timezone('utc', now()) + INTERVAL '30 days',
    ALTER COLUMN created_at  SET DEFAULT timezone('utc', now()),
    ALTER COLUMN updated_at  SET DEFAULT timezone('utc', now());

ALTER TABLE feature_usage
    ALTER COLUMN created_at SET DEFAULT timezone('utc', now());

-- Rows that the old default has dated into the future: nothing is created in the future, so created_at proves that they
-- were written in local time, and a valid_from equal to it was never chosen by anyone. Both are moved to now.
UPDATE tenant_licenses
   SET valid_from = timezone('utc', now()),
       created_at = timezone('utc', now())
 WHERE created_at > timezone('utc', now())
   AND valid_from = created_at;
