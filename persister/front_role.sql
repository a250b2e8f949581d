-- What the role of the front end may do: read everything, and write what it writes. It owns nothing.

-- name: exists
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'redeem_front' AND NOT rolsuper);

-- name: grant
GRANT USAGE ON SCHEMA public TO redeem_front;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO redeem_front;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO redeem_front;
REVOKE INSERT, DELETE ON ledger, ledger_rejects, acts FROM redeem_front;
GRANT INSERT ON acts TO redeem_front;
REVOKE INSERT, UPDATE, DELETE
    ON schema_migrations, ledger_offsets, ledger_chain, ledger_checks, ledger_tallies, campaign_totals
    FROM redeem_front;
