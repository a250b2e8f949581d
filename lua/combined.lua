#!lua
-- Redeems several codes of one shard together: all or none.
-- Answers {'ok', answer} as lib/answer_together, with a line of redeem.lua for each code.

-- @include lib/answer_together
-- @include lib/redeem

local function main()
    return answer_together(redeem)
end
