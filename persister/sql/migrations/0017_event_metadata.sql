-- The metadata of redemptions and holds, as JSON, where it is kept (REDEEM_METADATA_KEPT). It is not part of the hash chain,
-- because an erasure deletes it.
CREATE TABLE event_metadata (
    shard      smallint NOT NULL,
    stream_ms  bigint NOT NULL,   -- with stream_seq the event's place in the stream
    stream_seq bigint NOT NULL,
    metadata   text NOT NULL,
    PRIMARY KEY (shard, stream_ms, stream_seq)
);
