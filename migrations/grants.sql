-- Rights for the role that the proxy runs as: it reads and writes rows and changes no table. Run it as the tables' owner:
--   psql -v role=license_proxy -f migrations/grants.sql "$DATABASE_URL"

GRANT SELECT, INSERT, UPDATE, DELETE ON tenant_licenses, feature_usage, tenant_addons, usage_batches, usage_windows,
    usage_anchors, feature_denial_events, shadow_denial_events, upgrade_marks TO :"role";
-- What was done stays written down.
GRANT SELECT, INSERT ON license_audit TO :"role";

-- For `migrate --status`; absent where the migrations were run by psql.
SELECT to_regclass('refinery_schema_history') IS NOT NULL AS has_history \gset
\if :has_history
GRANT SELECT ON refinery_schema_history TO :"role";
\endif
