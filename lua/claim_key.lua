#!lua
-- Claims idempotency keys on the shard that each belongs to, for attempts on codes of other shards: there their
-- receipts are, and a key that is used again with a code of yet another shard is noticed here.
-- Answers, one for each attempt: `claimed`, or `idempotency_key_reused`.
local attempt_width = 19

-- @include lib/preamble
-- @include lib/idempotency

local answers = { 'ok' }
for at = 1, #fields, attempt_width do
    read_attempt(at)
    local answer = read_receipt()
    if not answer then
        keep_receipt('claimed')
    end
    answers[#answers + 1] = answer == 'idempotency_key_reused' and answer or 'claimed'
end
write_pending()
return answers
