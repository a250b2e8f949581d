SELECT create_ledger_month($1)
