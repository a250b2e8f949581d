#!lua
-- Adds up what workers have charged to sources (engine/guard/limits.py). No key of it belongs to a redemption.
-- KEYS are sources; ARGV has for each its charge in microseconds. A key holds when the source's bucket is full again, by the
-- clock of Redis, and ends then.
-- Answers for each source in how many microseconds its bucket is full.

local function main()
    local first_source = KEYS[1]
    local first_charge = ARGV[1]

    if not (first_source and first_charge) then
        return {}
    end
    local time = redis.call('TIME')
    local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
    local full_at = redis.call('MGET', unpack(KEYS))
    local answer = {}
    for at, value in ipairs(full_at) do
        answer[at] = math.max(tonumber(value or 0) or 0, now) + tonumber(ARGV[at]) - now
    end
    for at, fills in ipairs(answer) do
        redis.call('SET', KEYS[at], string.format('%.0f', now + fills), 'PX', math.ceil(fills / 1000) + 1)
    end
    return answer
end
