-- What a code of each kind gives. `used` is how often (multi), or how much of it (balance), so far.
-- Answers a refusal; or nil, the amount taken (nil without one), `used` afterwards, and the balance left.

local function take_from_code(campaign, used, amount)
    if campaign.kind == 'balance' then
        local left = tonumber(campaign.amount) - used
        local taken = amount == 'up_to_balance' and left or tonumber(amount)
        if amount == '' or amount == '0' then
            return 'invalid_amount'
        elseif taken > left or taken <= 0 then
            return 'insufficient_balance'
        end
        return nil, taken, used + taken, left - taken
    elseif amount ~= '' and amount ~= campaign.amount then
        return 'invalid_amount'
    elseif campaign.kind == 'multi' and used >= campaign.max_uses then
        return 'uses_exceeded'
    end
    return nil, tonumber(campaign.amount), used + 1, nil
end
