#!lua
-- Redeems a batch of attempts, each answered for itself, in their order.
-- Answers, one for each attempt: `redeemed <stream id> <amount>`, and of a code that holds an
-- amount ` <balance left>`; a refusal's code, `held_by_another_order` with the seconds until it is not;
-- or `replayed <the first answer>`. Of these no receipt is kept: `unpublished`: this shard has not the
-- campaign as the caller knows it; `due`: to be asked again once expired holds are given back.
local attempt_width = 19

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/use
-- @include lib/redeem

local answers = { 'ok' }
for at = 1, #fields, attempt_width do
    read_attempt(at)
    local answer = read_receipt()
    if not answer then
        answer = redeem()
        keep_receipt(answer)
    end
    answers[#answers + 1] = answer
end
write_pending()
return answers
