-- Who begins to write does not wait for who takes months out, where nothing is to be made.
SELECT create_ledger_month($1)
 WHERE NOT EXISTS (
       SELECT FROM ledger_months WHERE name = ledger_month($1) OR oldest AND name > ledger_month($1)
       )
