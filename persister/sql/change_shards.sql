-- Pinned campaigns go to the shard that their old one becomes; everything that names a shard has a new version.
WITH changed AS (
    UPDATE deployment SET shards = $1, control_version = control_version + 1 WHERE shards <> $1
    RETURNING control_version
)
UPDATE campaigns SET pinned_shard = pinned_shard % $1, version = changed.control_version
  FROM changed
 WHERE pinned_shard >= $1
