#!lua flags=no-writes
-- Says how a redemption would be answered, and changes nothing. Its attempts have no idempotency key.
-- Answers, one for each attempt, with these lines: `redeemable`, or the refusal that redeem.lua would answer; the
-- campaign's state; the code's state (fresh, redeemed, held, void); the number of uses (multi) or the amount used
-- (balance); the campaign's starts_at_ms; its ends_at_ms; its max_uses.

-- @include lib/answer_each
-- @include lib/check

local function main()
    return answer_each(check)
end
