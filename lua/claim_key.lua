#!lua
-- Reserves idempotency keys, each on the shard that the key belongs to, for attempts on codes of other shards. Whoever uses
-- the key again with a code of yet another shard is told so here.
-- Answers, one for each attempt: `claimed`; `replayed <the first answer>`, if the same request has been here before; or
-- `idempotency_key_reused`.

-- @include lib/answer_each

local function claim_key()
    return ANSWER.claimed
end

return answer_each(claim_key)
