#!lua
-- Redeems several codes of one shard together: all of them, or none. One receipt is kept for all, under
-- what the first attempt names.
-- Answers {'ok', answer}: what redeem.lua would answer each, a line each; behind a line `refused` where
-- one of them was, and nothing was done; or `replayed <the first answer>`.
local attempt_width = 19

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/redeem

local function redeem_all()
    local answers, refused, kept = {}, false, true
    for at = 1, #fields, attempt_width do
        read_attempt(at)
        local answer = redeem()
        local word = string.match(answer, '^%S+')
        if word == 'due' or word == 'unpublished' then
            forget_pending()
            return word, false
        end
        refused, kept = refused or word ~= 'redeemed', kept and not NOT_KEPT[word]
        answers[#answers + 1] = answer
    end
    if refused then
        forget_pending()
        table.insert(answers, 1, 'refused')
    end
    return table.concat(answers, '\n'), kept
end

read_attempt(1)
local answer = read_receipt()
if not answer then
    local kept
    answer, kept = redeem_all()
    if kept then
        read_attempt(1)
        keep_receipt(answer)
    end
end
write_pending()
return { 'ok', answer }
