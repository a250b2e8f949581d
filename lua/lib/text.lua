-- A number's digits. The same few come again and again: times, amounts.
local texts = {}

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
