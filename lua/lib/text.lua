-- Formats a number as digits. Results are cached, because a call formats the same times and amounts many times.
local texts

each_call(function()
    texts = {}
end)

local function text(number)
    if not number then
        return ''
    end
    local digits = texts[number]
    if not digits then
        digits = string.format('%.0f', number)
        texts[number] = digits
    end
    return digits
end
