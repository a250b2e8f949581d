SELECT amount FROM ledger
 WHERE shard = $1 AND stream_ms = $2 AND stream_seq = $3 AND batch = $4 AND serial = $5
   AND type IN ('redeemed', 'confirmed')
