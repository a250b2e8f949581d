#!lua
-- Holds codes, or parts of balances, for orders. If the order holds the code already, its hold is renewed.
-- Answers, one for each attempt: `held <hold id> <amount> <expires at, ms>`, for a balance also ` <balance left>`; other
-- answers as in redeem.lua.

-- @include lib/answer_each
-- @include lib/hold

local function main()
    return answer_each(hold_code)
end
