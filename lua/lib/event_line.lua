-- Writes one event as a line of a stream entry: a JSON array, whose values are always in the same order
-- (engine/store/events.py). Only the caller's parts can hold text that needs escapes, so they come as JSON: `about_json`
-- (batch, serial, last4, user), `cause_json` (order, key, actor) and `ending` (metadata, fingerprint; empty or nil for
-- neither). `digits` is the amount, nil for none.

local function quoted(word)
    return word and word ~= '' and '"' .. word .. '"' or 'null'
end

local function event_line(type, id, redemption, hold, campaign, about_json, digits, currency, cause_json, at, ending)
    return '["' .. type .. '","' .. id .. '","' .. redemption .. '",' .. quoted(hold) .. ',"' .. campaign .. '",' .. about_json
        .. ',' .. (digits or 'null') .. ',' .. quoted(currency) .. ',' .. cause_json .. ',' .. at
        .. (ending and ending ~= '' and ',' .. ending .. ']' or ']')
end
