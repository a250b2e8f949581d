-- Reads and counts the uses of codes, the amounts spent, and the successes of users.

-- @include lib/text
-- @include lib/unit_of_work

-- Returns the number of uses (multi) or the amount spent (balance) of the code so far; 0 for a single code.
local function read_used(campaign)
    if attempt.used_at == 0 then
        return 0
    end
    local known = slots(work.used, attempt.used_at)[attempt.used_field] or attempt.used_read
    if not known then
        if campaign.kind == 'multi' then
            known = tonumber(redis.call('HGET', KEYS[attempt.used_at], attempt.used_field)) or 0
        else
            known = redis.call('BITFIELD_RO', KEYS[attempt.used_at], 'GET', 'i64', '#' .. attempt.used_field)[1]
        end
        attempt.used_read = known
    end
    return known
end

local function set_used(campaign, value)
    slots(work.used, attempt.used_at)[attempt.used_field] = value
    work.used_kind[attempt.used_at] = campaign.kind
end

-- Returns the balance left on the code; nil if the code is not of kind balance.
local function read_left(campaign)
    return campaign.kind == 'balance' and tonumber(campaign.amount) - read_used(campaign) or nil
end

-- Returns the number of successes of the user; nil if the campaign does not count them.
local function read_counted()
    if attempt.users_at == 0 then
        return nil
    end
    local known = slots(work.users, attempt.users_at)[attempt.user_digest] or attempt.counted_read
    if not known then
        known = tonumber(redis.call('HGET', KEYS[attempt.users_at], attempt.user_digest)) or 0
        attempt.counted_read = known
    end
    return known
end

-- Adds a use and an amount to the counters of campaign, code and user. Negative numbers give back.
local function count_use(campaign, uses, taken)
    campaign.added = campaign.added + uses
    campaign.added_amount = campaign.added_amount + taken
    if campaign.kind == 'multi' then
        set_used(campaign, read_used(campaign) + uses)
    elseif campaign.kind == 'balance' then
        set_used(campaign, read_used(campaign) + taken)
    end
    local counted = uses ~= 0 and read_counted()
    if counted then
        slots(work.users, attempt.users_at)[attempt.user_digest] = math.max(0, counted + uses)
    end
end
