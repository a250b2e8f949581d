#!lua
-- Redeems several codes of one shard together: all of them, or none. There is one idempotency record for all of them,
-- under the key of the first attempt.
-- Answers {'ok', answer}: what redeem.lua would answer to each, a line each, with a line `refused` in front if one of
-- them was refused, and nothing was done; or `replayed <the first answer>`.

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/redeem
-- @include lib/write_work

-- What to answer, and whether an idempotency record is kept of it.
local function redeem_all()
    local answers, refused, kept = {}, false, true
    for _ in next_attempt, 0, 0 do
        local answer = redeem()
        local word = string.match(answer, '^%S+')
        if word == ANSWER.holds_expired or word == ANSWER.unpublished then
            begin_work()
            return word, false
        end
        refused, kept = refused or word ~= ANSWER.redeemed, kept and not NOT_KEPT[word]
        answers[#answers + 1] = answer
    end
    if refused then
        begin_work()
        table.insert(answers, 1, ANSWER.refused)
    end
    return table.concat(answers, '\n'), kept
end

next_attempt(0, 0)
local answer = read_idempotency_record()
if not answer then
    local kept
    answer, kept = redeem_all()
    if kept then
        next_attempt(0, 0)
        keep_idempotency_record(answer)
    end
end
write_work()
return { ANSWER.ok, answer }
