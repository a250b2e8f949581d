-- Reads what the attempt's events say about it. A plain redemption does not need it, so it is read only when asked for.

-- @include lib/unit_of_work

local descriptions

each_call(function()
    descriptions = {}
end)

-- Returns batch, serial, last4, user, order and actor of the attempt. The order is empty for none.
local function describe()
    local description = descriptions[attempt]
    if not description then
        local values = cjson.decode('[' .. about[attempt] .. ',' .. cause[attempt] .. ']')
        description = {
            batch = values[1], serial = values[2], last4 = values[3], user = values[4],
            order = values[5] ~= cjson.null and values[5] or '', actor = values[7],
        }
        descriptions[attempt] = description
    end
    return description
end

local function code_name()
    local code = describe()
    return code.batch .. ':' .. code.serial
end

-- The attempt's code as a range of serials, as events about void codes name it.
local function range_of_code()
    local serial = describe().serial
    return serial .. '-' .. serial
end
