#!lua
-- Does as redeem.lua for attempts of browser keys (lib/answer_alike).

-- @include lib/answer_alike
-- @include lib/redeem

local function main()
    return answer_alike(redeem)
end
