#!lua
-- The commit record of a cross-shard transaction, on the shard where its idempotency key belongs: which worker is at it,
-- and, as soon as it is decided, what must be done, whoever does it (engine/redemption/cross_shard.py).
-- `step` is `begin`: keep all others from it for BUSY_MS; `decide`: keep `payload`; `end`: nothing is left to do, and
-- `payload`, unless it is empty, becomes the idempotency record. `begin` also claims the key, as claim_key.lua does.
-- Answers, one for each attempt: `begun` and, on a line of its own, the token of a worker that had begun it and is gone;
-- `decided`; `ended`; `busy`: another worker is at it; `lost`: another worker took it over; `resume` and, on lines of
-- their own, the commit record of what was decided; `replayed <the first answer>`; `idempotency_key_reused`.

-- @include lib/answer_each

local BUSY_MS = 10000
local KEEPS_OWN_RECORDS = true
local commit_records = {}

local function begin(record, state, owner, busy_until_ms, nonce)
    local first_answer = read_idempotency_record()
    if not first_answer then
        keep_idempotency_record(ANSWER.claimed)
    elseif first_answer ~= ANSWER.replayed .. ' ' .. ANSWER.claimed then
        return first_answer
    end
    if state == 'decided' then
        return ANSWER.resume .. '\n' .. record
    elseif state and now_ms < busy_until_ms then
        return ANSWER.busy
    end
    local begun = 'begun\n' .. nonce .. '\n' .. text(now_ms + BUSY_MS) .. '\n'
    return owner and ANSWER.begun .. '\n' .. owner or ANSWER.begun, begun
end

-- Answers the step; and the commit record to write, if any.
local function take_step(record, step, nonce, payload)
    local state, owner, busy_until_ms = string.match(record or '', '^(%a+)\n(%x+)\n(%d+)\n')
    busy_until_ms = tonumber(busy_until_ms)
    if step == 'begin' then
        return begin(record, state, owner, busy_until_ms, nonce)
    elseif owner ~= nonce then
        return ANSWER.lost
    elseif step == 'decide' then
        if state == 'begun' and now_ms >= busy_until_ms then
            return ANSWER.lost
        end
        return ANSWER.decided, 'decided\n' .. nonce .. '\n' .. text(now_ms) .. '\n' .. payload
    end
    if payload ~= '' then
        keep_idempotency_record(payload)
    end
    return ANSWER.ended, REMOVED
end

local function answer_step(commit_records_at, step, transaction_id, nonce, payload_at)
    local record = redis.call('HGET', KEYS[commit_records_at], transaction_id)
    local answer, new_record = take_step(record, step, nonce, ARGV[payload_at])
    if new_record ~= nil then
        slots(commit_records, commit_records_at)[transaction_id] = new_record
    end
    return answer
end

local answers = answer_each(answer_step, 5, KEEPS_OWN_RECORDS)
for at, records in pairs(commit_records) do
    for transaction_id, record in pairs(records) do
        if record == REMOVED then
            redis.call('HDEL', KEYS[at], transaction_id)
        else
            redis.call('HSET', KEYS[at], transaction_id, record)
        end
    end
end
return answers
