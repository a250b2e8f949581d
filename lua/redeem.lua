#!lua
-- Redeems codes. Each attempt of the call gets its own answer, in their order.
-- Answers, one for each attempt: `redeemed <event id> <amount>`, for a balance also ` <balance left>`; a refusal;
-- `holds_expired` or `unpublished`; or `replayed <the first answer>`.

-- @include lib/answer_each
-- @include lib/redeem
-- @include lib/redeem_plain

local function main()
    return answer_each(redeem, redeem_plain)
end
