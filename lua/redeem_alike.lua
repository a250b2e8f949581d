#!lua
-- Does as redeem.lua for attempts of browser keys (lib/answer_alike).

-- @include lib/answer_alike
-- @include lib/redeem

return answer_alike(redeem)
