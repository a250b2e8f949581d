-- Decides whether the attempt's code can be used now, and for which amount.

-- @include lib/campaign
-- @include lib/description
-- @include lib/usage
-- @include lib/holds_have_expired

-- Checks the code alone. Returns a refusal; or nil, the amount taken (nil if the code has none), and the balance left.
local function take_from_code(campaign)
    local used_before, asked = read_used(campaign), amount[attempt]
    if campaign.kind == 'balance' then
        local left = campaign.face - used_before
        local taken = asked == 'up_to_balance' and left or tonumber(asked)
        if not asked or asked == '0' then
            return ANSWER.invalid_amount
        elseif taken > left or taken <= 0 then
            return ANSWER.insufficient_balance
        end
        return nil, taken, left - taken
    elseif asked and asked ~= campaign.amount then
        return ANSWER.invalid_amount
    elseif campaign.kind == 'multi' and used_before >= campaign.max_uses then
        return ANSWER.uses_exceeded
    end
    return nil, campaign.face, nil
end

-- Checks the code and the limits. Returns a refusal; or nil, the amount taken, and the balance left. It counts nothing.
-- While expired holds are not given back, it returns `holds_expired` instead of a refusal: without them, the use may be
-- possible.
local function decide_use(campaign)
    local counted = read_counted()
    local refusal, taken, left = take_from_code(campaign)
    if refusal == ANSWER.invalid_amount then
        return refusal
    elseif not refusal then
        if campaign.stock and campaign.uses + campaign.added >= campaign.stock then
            refusal = ANSWER.sold_out
        elseif campaign.spent + campaign.added_amount + (taken or 0) > campaign.budget then
            refusal = ANSWER.budget_exceeded
        elseif campaign.per_user_limit and not counted and describe().user ~= '' then
            return ANSWER.unpublished -- the limit was removed: the caller knows it, this shard does not yet
        elseif campaign.per_user_limit and counted and counted >= campaign.per_user_limit then
            refusal = ANSWER.customer_limit_exceeded
        end
    end
    if refusal and holds_have_expired() then
        return ANSWER.holds_expired
    end
    return refusal, taken, left
end
