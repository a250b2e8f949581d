-- Redeems plain attempts in one loop: those that nothing but the state of the code, stock and budget can be against. A call
-- has many of them, so what those of one campaign have in common is made once. All others, and what is refused, are left to
-- lib/redeem.

-- @include lib/redeem

local WORTHWHILE = 4 -- attempts of a call; with fewer, making what they have in common takes longer than it saves
local MARK = '\n' -- stands where the texts of attempts differ; events and answers have no line breaks

local plain -- by position in KEYS: what the plain attempts of a campaign have in common; false if it has none

each_call(function()
    plain = {}
end)

-- Returns the parts of a text between its marks.
local function cut(marked)
    local parts = {}
    for part in string.gmatch(marked .. MARK, '(.-)' .. MARK) do
        parts[#parts + 1] = part
    end
    return unpack(parts)
end

-- How many redemptions stock and budget allow.
local function read_room(campaign)
    local by_stock = campaign.stock and campaign.stock - campaign.uses or math.huge
    local by_budget = campaign.face and (campaign.budget - campaign.spent) / campaign.face or math.huge
    return math.floor(math.min(by_stock, by_budget))
end

local function prepare_plain()
    local campaign = read_campaign()
    local is_overspent = campaign.spent > campaign.budget -- then even a code without an amount is refused
    if campaign.kind ~= 'single' or campaign.per_user_limit or is_overspent or refusal_of_campaign(campaign) then
        return false
    end
    local common = { campaign = campaign, room = read_room(campaign), taken = campaign.face or 0 }
    local stream_id = text(event_ms) .. '-' .. MARK
    local id = shard .. '-' .. stream_id
    common.begin, common.to_redemption, common.to_about, common.to_cause, common.ending = cut(event_line(
        'redeemed', id, id, nil, campaign.id, MARK, campaign.face and text(campaign.face), campaign.currency, MARK, text(event_ms)
    ))
    common.to_event_id, common.to_end = cut(answer_redeemed(stream_id, campaign.face))
    return common
end

-- Returns what the attempt has in common with others; nil if it is not plain, or if anything may be against it.
local function find_plain(number)
    local at = campaign_at[number]
    if plain[at] == nil then
        attempt = number
        plain[at] = prepare_plain()
    end
    local common = plain[at]
    if
        not common or state_at[number] == 0 or common.campaign.added >= common.room or columns[OWN_FIRST][number] ~= ''
        or amount[number] or users_at[number] or idempotency_at[number]
    then
        return nil
    end
    return common
end

-- Redeems plain attempts, from the first one on, until one of the call is not plain. Returns its number.
local function redeem_plain(first, answers)
    if #about < WORTHWHILE then
        return first
    end
    local events = work.events
    for number = first, #about do
        local common = find_plain(number)
        if not common then
            return number
        end
        local at, position = state_at[number], offset[number]
        local states = slots(work.states, at)
        if (states[position] or read_stored_state(at, position)) ~= FRESH then
            return number
        end
        states[position] = REDEEMED
        local campaign = common.campaign
        campaign.added = campaign.added + 1
        campaign.added_amount = campaign.added_amount + common.taken
        local seq = text(event_seq)
        event_seq = event_seq + 1
        events[#events + 1] = common.begin .. seq .. common.to_redemption .. seq .. common.to_about .. about[number]
            .. common.to_cause .. cause[number] .. common.ending
        answers[number + 1] = common.to_event_id .. seq .. common.to_end
    end
    return #about + 1
end
