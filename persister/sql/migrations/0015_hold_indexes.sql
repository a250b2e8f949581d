-- Lists of holds by order, newest first.
CREATE INDEX ledger_held_order ON ledger (order_ref, stream_ms, shard, stream_seq)
    WHERE type = 'held' AND order_ref IS NOT NULL;
-- What a hold has become; its release or expiry is found by ledger_redemption.
CREATE INDEX ledger_hold ON ledger (hold) WHERE type = 'confirmed' AND hold IS NOT NULL;
