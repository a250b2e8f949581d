-- The ledger's tables, the oldest first, with their indexes' bytes, too.
SELECT oid, name, oldest, pg_total_relation_size(oid) AS bytes FROM ledger_months ORDER BY name
