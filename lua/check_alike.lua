#!lua flags=no-writes
-- Does as check.lua for attempts of browser keys (lib/answer_alike).

-- @include lib/answer_alike
-- @include lib/check

local function main()
    return answer_alike(check)
end
