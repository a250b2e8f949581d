-- Answers every attempt of the call, in their order, and then writes the unit of work.

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/write_work

local function answer_none(first)
    return first
end

-- `decide` returns the answer to an attempt. Its parameters are the script's own fields. If the idempotency key was used
-- before, the first answer is given again. With `keeps_own_records`, `decide` reads and writes the idempotency records itself.
-- `answer_several(first, answers)` may answer attempts from the first on, as many as it can; it returns the next one's number.
local function answer_each(decide, answer_several, keeps_own_records)
    answer_several = answer_several or answer_none
    local answers = { ANSWER.ok }
    local number = answer_several(1, answers)
    while number <= #about do
        attempt = number
        local has_record = idempotency_at[number] and not keeps_own_records
        local answer = has_record and read_idempotency_record()
        if not answer then
            answer = decide(own_fields())
            if has_record then
                keep_idempotency_record(answer)
            end
        end
        answers[number + 1] = answer
        number = answer_several(number + 1, answers)
    end
    write_work()
    return answers
end
