#!lua
-- Reserves idempotency keys on their home shard, for attempts on codes of other shards. So the engine notices when a key is
-- used again with a code of a third shard.
-- Answers, one for each attempt: `claimed`, also if the same request reserved the key before; `replayed <the first answer>`, if
-- it was answered by this shard; or `idempotency_key_reused`.

-- @include lib/answer_each

local function claim_key()
    return ANSWER.claimed
end

local function main()
    return answer_each(claim_key)
end
