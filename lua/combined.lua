#!lua
-- Redeems several codes of one shard together: all or none. They share one idempotency record, under the key of the first
-- attempt.
-- Answers {'ok', answer}. The answer has one line for each code: the answer of redeem.lua. If a code was refused, nothing
-- was done, and the first line is `refused`. Or the answer is `replayed <the first answer>`.

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/redeem
-- @include lib/write_work

-- Returns the answer, and whether to store it as the idempotency record.
local function redeem_all()
    local answers, refused, is_final = {}, false, true
    for _ in next_attempt, 0, 0 do
        local answer = redeem()
        local word = string.match(answer, '^%S+')
        if word == ANSWER.holds_expired or word == ANSWER.unpublished then
            begin_work()
            return word, false
        end
        refused, is_final = refused or word ~= ANSWER.redeemed, is_final and not NOT_KEPT[word]
        answers[#answers + 1] = answer
    end
    if refused then
        begin_work()
        table.insert(answers, 1, ANSWER.refused)
    end
    return table.concat(answers, '\n'), is_final
end

next_attempt(0, 0)
local answer = read_idempotency_record()
if not answer then
    local is_final
    answer, is_final = redeem_all()
    if is_final then
        next_attempt(0, 0)
        keep_idempotency_record(answer)
    end
end
write_work()
return { ANSWER.ok, answer }
