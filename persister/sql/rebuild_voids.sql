-- Single codes that are void; ranges, whose events have no last symbols, are configuration.
SELECT batch, serial
  FROM (SELECT DISTINCT ON (batch, serial) batch, serial, type
          FROM ledger
         WHERE type IN ('voided', 'unvoided') AND last4 <> ''
         ORDER BY batch, serial, stream_ms DESC, stream_seq DESC, shard DESC) AS latest
 WHERE type = 'voided'
