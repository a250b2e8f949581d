-- name: erase_metadata
-- Before erase: metadata is found by the name.
DELETE FROM event_metadata AS m USING ledger AS l
WHERE l.user_id = $1 AND l.user_id <> ''
  AND (m.shard, m.stream_ms, m.stream_seq) = (l.shard, l.stream_ms, l.stream_seq);

-- name: erase
-- The chain (persister/ingest/chain.py) stays valid: user_seal becomes the hash that the chain has of the name. A fingerprint
-- would tell whether a name was the erased one.
UPDATE ledger SET user_id = $2, fingerprint = NULL, user_seal = CASE octet_length(user_seal)
    WHEN 32 THEN user_seal
    ELSE sha256(user_seal || convert_to(user_id, 'UTF8')) END
WHERE user_id = $1 AND user_id <> '';

-- name: erase_rejects
-- Of a stream entry of version 1, raw holds the field names and values in turn.
UPDATE ledger_rejects AS l
SET raw = (
    SELECT array_agg(CASE WHEN at % 2 = 0 AND l.raw[at - 1] = 'user' AND l.raw[at] = $1 THEN $2 ELSE l.raw[at] END ORDER BY at)
    FROM generate_subscripts(l.raw, 1) AS at
)
WHERE EXISTS (
    SELECT FROM generate_subscripts(l.raw, 1) AS at WHERE at % 2 = 0 AND l.raw[at - 1] = 'user' AND l.raw[at] = $1
);

-- name: packed_rejects
-- Of version 2, the last of them is one event as JSON, which may not be valid. $1 is the name as a JSON string.
SELECT shard, stream_ms, stream_seq, raw[4] AS line FROM ledger_rejects
WHERE raw[2] = '2' AND position($1::bytea IN raw[4]) > 0
FOR UPDATE;

-- name: erase_packed_reject
UPDATE ledger_rejects SET raw[4] = $4 WHERE (shard, stream_ms, stream_seq) = ($1, $2, $3);

-- name: has_blocks
SELECT EXISTS (SELECT FROM blocks WHERE kind = 'user' AND subject = $1);

-- name: next_version
UPDATE deployment SET control_version = control_version + 1 RETURNING control_version;

-- name: erase_blocks
UPDATE blocks SET subject = $2, evidence = NULL, version = $4,
    lifted_at = coalesce(lifted_at, now()), lifted_by = coalesce(lifted_by, $3)
WHERE kind = 'user' AND subject = $1;

-- name: erase_alerts
UPDATE alerts SET subject = $2 WHERE kind = 'user' AND subject = $1;
