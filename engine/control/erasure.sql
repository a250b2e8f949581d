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
-- A reject is a stream entry that is not a valid event: raw holds its field names and values in turn.
UPDATE ledger_rejects AS l
SET raw = (
    SELECT array_agg(CASE WHEN at % 2 = 0 AND l.raw[at - 1] = 'user' AND l.raw[at] = $1 THEN $2 ELSE l.raw[at] END ORDER BY at)
    FROM generate_subscripts(l.raw, 1) AS at
)
WHERE EXISTS (
    SELECT FROM generate_subscripts(l.raw, 1) AS at WHERE at % 2 = 0 AND l.raw[at - 1] = 'user' AND l.raw[at] = $1
);

-- name: has_blocks
SELECT EXISTS (SELECT FROM blocks WHERE kind = 'user' AND subject = $1);

-- name: next_version
UPDATE deployment SET control_version = control_version + 1 RETURNING control_version;

-- name: erase_blocks
UPDATE blocks SET subject = $2, evidence = NULL, version = $4,
    lifted_at = coalesce(lifted_at, now()), lifted_by = coalesce(lifted_by, $3)
WHERE kind = 'user' AND subject = $1;
