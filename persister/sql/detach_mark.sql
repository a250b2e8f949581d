UPDATE campaigns SET ledger_detached = true WHERE id = ANY ($1::text[])
