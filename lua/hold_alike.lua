#!lua
-- Does as hold.lua for attempts of browser keys (lib/answer_alike).

-- @include lib/answer_alike
-- @include lib/hold

return answer_alike(hold_code)
