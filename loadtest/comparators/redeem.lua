#!lua
-- The script of the peers that use Redis. If the campaign is active and the code unused, it marks the code and
-- adds an event. It does not check that the code was issued.
-- Returns `redeemed` with the event's id, the amount and the currency; or the code of a refusal.
local campaign_key, codes_key, events_key = KEYS[1], KEYS[2], KEYS[3]
local code, last4, user = ARGV[1], ARGV[2], ARGV[3]

local campaign = redis.call('HMGET', campaign_key, 'state', 'amount', 'currency')
local state, amount, currency = campaign[1], campaign[2], campaign[3]
if state ~= 'active' then
    return { 'campaign_inactive' }
end
if redis.call('HSETNX', codes_key, code, user) == 0 then
    return { 'already_redeemed' }
end
local id = redis.call('XADD', events_key, '*', 'type', 'redeemed', 'last4', last4, 'user', user,
    'amount', amount, 'currency', currency)
return { 'redeemed', id, amount, currency }
