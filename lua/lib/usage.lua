-- Reads and counts the uses of codes, the amounts spent, and the successes of users.

-- @include lib/text
-- @include lib/unit_of_work

local used_read, counted_read -- what Redis had of an attempt's code and of its user

each_call(function()
    used_read, counted_read = {}, {}
end)

-- Returns the number of uses (multi) or the amount spent (balance) of the code so far; 0 for a single code.
local function read_used(campaign)
    local at, field = used_at[attempt], used_field[attempt]
    if not at then
        return 0
    end
    local known = slots(work.used, at)[field] or used_read[attempt]
    if not known then
        if campaign.kind == 'multi' then
            known = tonumber(redis.call('HGET', KEYS[at], field)) or 0
        else
            known = redis.call('BITFIELD_RO', KEYS[at], 'GET', 'i64', '#' .. field)[1]
        end
        used_read[attempt] = known
    end
    return known
end

local function set_used(campaign, value)
    slots(work.used, used_at[attempt])[used_field[attempt]] = value
    work.used_kind[used_at[attempt]] = campaign.kind
end

-- Returns the balance left on the code; nil if the code is not of kind balance.
local function read_left(campaign)
    return campaign.kind == 'balance' and campaign.face - read_used(campaign) or nil
end

-- Returns the number of successes of the user; nil if the campaign does not count them.
local function read_counted()
    local at = users_at[attempt]
    if not at then
        return nil
    end
    local digest = ARGV[user_digest_at[attempt]]
    local known = slots(work.users, at)[digest] or counted_read[attempt]
    if not known then
        known = tonumber(redis.call('HGET', KEYS[at], digest)) or 0
        counted_read[attempt] = known
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
        slots(work.users, users_at[attempt])[ARGV[user_digest_at[attempt]]] = math.max(0, counted + uses)
    end
end
