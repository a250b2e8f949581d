-- The campaign of the attempt's code.

-- @include lib/unit_of_work

local AMOUNT_MAX = 9007199254740991 -- 2^53 - 1: the largest integer that numbers in Lua and JSON hold exactly

local function read_campaign()
    local at = campaign_at[attempt]
    local campaign = work.campaigns[at]
    if not campaign then
        local values = redis.call(
            'HMGET', KEYS[at], 'id', 'kind', 'state', 'starts_at_ms', 'ends_at_ms', 'amount', 'currency',
            'max_uses', 'stock', 'per_user_limit', 'budget', 'uses', 'spent'
        )
        campaign = {
            id = values[1], kind = values[2], state = values[3],
            starts_at_ms = tonumber(values[4]), ends_at_ms = tonumber(values[5]),
            amount = values[6] or '', face = tonumber(values[6]), currency = values[7] or '', max_uses = tonumber(values[8]),
            stock = tonumber(values[9]), per_user_limit = tonumber(values[10]), budget = tonumber(values[11]) or AMOUNT_MAX,
            uses = tonumber(values[12]) or 0, spent = tonumber(values[13]) or 0,
            added = 0, added_amount = 0, -- by this call
        }
        work.campaigns[at] = campaign
    end
    return campaign
end
