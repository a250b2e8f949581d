-- Answers every attempt of the call, in their order, and then writes the unit of work.

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/write_work

-- `decide` returns the answer to an attempt. Its parameters are the script's own fields; `own_fields` is their number, nil
-- for none. If the idempotency key was used before, the first answer is given again. With `keeps_own_records`, `decide`
-- reads and writes the idempotency records itself.
local function answer_each(decide, own_fields, keeps_own_records)
    local answers, count = { ANSWER.ok }, 1
    own_fields = own_fields or 0
    for last in next_attempt, own_fields, 0 do
        local answer = not keeps_own_records and read_idempotency_record()
        if not answer then
            answer = decide(unpack(fields, last - own_fields + 1, last))
            if not keeps_own_records then
                keep_idempotency_record(answer)
            end
        end
        count = count + 1
        answers[count] = answer
    end
    write_work()
    return answers
end
