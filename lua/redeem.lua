#!lua
-- Redeems a batch of attempts, each answered for itself, in their order.
-- Answers, one for each attempt: `redeemed <event id> <amount>`, for a code that holds an amount also ` <balance left>`;
-- a refusal; `holds_expired` or `unpublished`; or `replayed <the first answer>`.

-- @include lib/answer_each
-- @include lib/redeem

return answer_each(redeem)
