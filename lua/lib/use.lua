-- Whether the attempt's code can be used now, and what it gives.

-- @include lib/unit_of_work
-- @include lib/holds

local function refusal_of_campaign(campaign)
    if not campaign.id then
        return 'unpublished'
    elseif campaign.state == 'ended' then
        return 'campaign_ended'
    elseif campaign.state ~= 'active' then
        return 'campaign_inactive'
    elseif campaign.starts_at_ms and now_ms < campaign.starts_at_ms then
        return 'campaign_not_started'
    elseif campaign.ends_at_ms and now_ms >= campaign.ends_at_ms then
        return 'campaign_ended'
    end
    return nil
end

-- What the code itself gives: a refusal; or nil, the amount taken (nil without one), and the balance left.
local function take_from_code(campaign)
    local used_before = read_used(campaign)
    if campaign.kind == 'balance' then
        local left = tonumber(campaign.amount) - used_before
        local taken = attempt.amount == 'up_to_balance' and left or tonumber(attempt.amount)
        if attempt.amount == '' or attempt.amount == '0' then
            return 'invalid_amount'
        elseif taken > left or taken <= 0 then
            return 'insufficient_balance'
        end
        return nil, taken, left - taken
    elseif attempt.amount ~= '' and attempt.amount ~= campaign.amount then
        return 'invalid_amount'
    elseif campaign.kind == 'multi' and used_before >= campaign.max_uses then
        return 'uses_exceeded'
    end
    return nil, tonumber(campaign.amount), nil
end

-- What code and limits give: a refusal, or nil, the amount taken, and the balance left. `due`: refused only
-- as long as holds that have expired are not given back. Nothing is counted yet.
local function decide_use(campaign)
    local counted = read_counted()
    local refusal, taken, left = take_from_code(campaign)
    if refusal == 'invalid_amount' then
        return refusal
    elseif not refusal then
        if campaign.stock and campaign.uses + campaign.added >= campaign.stock then
            refusal = 'sold_out'
        elseif campaign.spent + campaign.added_amount + (taken or 0) > campaign.budget then
            refusal = 'budget_exceeded'
        elseif campaign.per_user_limit and attempt.user ~= '' and not counted then
            return 'unpublished' -- the caller knows of the limit's end, this shard not yet
        elseif campaign.per_user_limit and attempt.user ~= '' and counted >= campaign.per_user_limit then
            refusal = 'customer_limit_exceeded'
        end
    end
    if refusal and holds_are_due() then
        return 'due'
    end
    return refusal, taken, left
end
