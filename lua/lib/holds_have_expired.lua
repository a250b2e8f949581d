-- Whether there are expired holds that were not given back yet. Redis is read once per call at most, and only if needed.

-- @include lib/text

local have_expired

each_call(function()
    have_expired = nil
end)

local function holds_have_expired()
    if have_expired == nil then
        have_expired = #redis.call('ZRANGEBYSCORE', expiry_key, '-inf', text(now_ms), 'LIMIT', 0, 1) > 0
    end
    return have_expired
end
