-- Answers all attempts of the call with one answer, and then writes the unit of work: all are done, or none. They share one
-- idempotency record, under the key of the first attempt.

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/write_work

-- Returns the answer, and what to store of it as the idempotency record, if anything.
local function decide_all(decide, success)
    local answers, refused, is_final = {}, false, true
    for number = 1, #about do
        attempt = number
        local answer = decide(own_fields())
        local word = string.match(answer, '^%S+')
        if word == ANSWER.holds_expired or word == ANSWER.unpublished then
            begin_work()
            return word
        end
        refused, is_final = refused or word ~= success, is_final and not NOT_KEPT[word]
        answers[number] = answer
    end
    if refused then
        begin_work()
        table.insert(answers, 1, ANSWER.refused)
    end
    local answer = table.concat(answers, '\n')
    return answer, is_final and answer or ANSWER.claimed
end

-- `decide` is as in answer_each. `success` is the word of an attempt that succeeds. Returns {'ok', answer}.
-- The answer has one line for each attempt. If an attempt did not succeed, nothing was done, and the first line is `refused`.
-- Or the answer is `holds_expired`, `unpublished` or `replayed <the first answer>`.
local function answer_together(decide, success)
    local answer = read_idempotency_record()
    if not answer then
        local kept
        answer, kept = decide_all(decide, success or ANSWER.redeemed)
        if kept then
            attempt = 1
            keep_idempotency_record(kept)
        end
    end
    write_work()
    return { ANSWER.ok, answer }
end
