-- Formats a number as digits. Results are kept: for a call, because it formats the same times and amounts many times; those of
-- small numbers always, because every call counts its events from 0.

local SMALL_MAX = 255
local small_texts = {}
local texts

each_call(function()
    texts = {}
end)

local function text(number)
    if not number then
        return ''
    end
    local kept = number >= 0 and number <= SMALL_MAX and small_texts or texts
    local digits = kept[number]
    if not digits then
        digits = string.format('%.0f', number)
        kept[number] = digits
    end
    return digits
end
