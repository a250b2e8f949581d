-- Returns the refusal if a hold blocks the attempt: `held_by_another_order` and the seconds until the hold expires. Returns
-- `holds_expired` if the hold has expired and was not given back yet; nil if the attempt's own order holds the code.

-- @include lib/description
-- @include lib/text

local function refusal_of_hold(hold)
    if now_ms >= hold.expires_at_ms then
        return ANSWER.holds_expired
    end
    local caller = describe()
    if caller.order == '' or hold.order ~= caller.order or hold.user ~= caller.user then
        return ANSWER.held_by_another_order .. ' ' .. text(math.ceil((hold.expires_at_ms - now_ms) / 1000))
    end
    return nil
end
