#!lua
-- Does as hold.lua for attempts of browser keys (lib/answer_alike).

-- @include lib/answer_alike
-- @include lib/hold

local function main()
    return answer_alike(hold_code)
end
