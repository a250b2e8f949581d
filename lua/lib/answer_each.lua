-- Answers every attempt of the call, in their order, and then writes what was decided.

-- @include lib/preamble
-- @include lib/idempotency
-- @include lib/write_work

-- `decide` answers the attempt; its parameters are the script's own fields, as many as `own_fields` says, 0 if it says
-- nothing. An idempotency key that was used before gets its first answer again, unless `decide` sees to that itself.
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
