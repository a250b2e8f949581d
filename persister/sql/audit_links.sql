SELECT first_seq, last_seq, digest FROM ledger_chain WHERE shard = $1 ORDER BY last_seq
