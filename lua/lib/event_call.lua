-- Builds the XADD command of an event, for redis.call(unpack(…)). The fields are always the same, in the same order
-- (engine/store/events.py); only metadata may follow.

local function event_call(
    stream_key, event_id, type, redemption, hold, campaign, batch, serial, last4, user, amount, currency, order, key, actor, at
)
    return {
        'XADD', stream_key, event_id,
        'v', '1', 'type', type, 'redemption', redemption, 'hold', hold, 'campaign', campaign,
        'batch', batch, 'serial', serial, 'last4', last4, 'user', user,
        'amount', amount, 'currency', currency, 'order', order, 'key', key, 'actor', actor, 'at', at,
    }
end
