#!lua
-- Makes a step of a cross-shard transaction in its commit record, on the home shard of its idempotency key. The record says
-- which worker runs the transaction and, after the decision, what must be done (engine/redemption/cross_shard.py).
-- `step` is one of:
--   `begin`: keep other workers away for BUSY_MS, and reserve the key as claim_key.lua does
--   `decide`: store `payload`, the decision, unless the configuration is later than `prepared_version`
--   `end`: delete the commit record; `payload`, unless it is empty, becomes the idempotency record
-- Answers, one for each attempt:
--   `begun` and, on the next line, the nonce of a worker that began the transaction before and is gone
--   `decided`; `ended`
--   `changed`: the configuration has changed since the codes were prepared; nothing was decided
--   `busy`: another worker runs the transaction
--   `lost`: another worker has taken it over
--   `resume` and, on the following lines, the commit record: the transaction was decided before
--   `replayed <the first answer>`; `idempotency_key_reused`; `request_replayed`

-- @include lib/answer_each

local BUSY_MS = 5000
local KEEPS_OWN_RECORDS = true
local commit_records

each_call(function()
    commit_records = {}
end)

local function begin(record, state, owner, busy_until_ms, nonce)
    local first_answer = read_idempotency_record()
    if first_answer then
        return first_answer
    end
    if state == 'begun' and now_ms < busy_until_ms then
        return ANSWER.busy -- whoever began it has reserved the key; the engine calls again with the same nonce
    end
    keep_idempotency_record(ANSWER.claimed)
    if state == 'decided' then
        return ANSWER.resume .. '\n' .. record
    end
    local begun = 'begun\n' .. nonce .. '\n' .. text(now_ms + BUSY_MS) .. '\n'
    return owner and ANSWER.begun .. '\n' .. owner or ANSWER.begun, begun
end

-- Returns the answer, and the commit record to write, if any.
local function take_step(record, step, nonce, prepared_version, payload)
    local state, owner, busy_until_ms = string.match(record or '', '^(%a+)\n(%x+)\n(%d+)\n')
    busy_until_ms = tonumber(busy_until_ms)
    if step == 'begin' then
        return begin(record, state, owner, busy_until_ms, nonce)
    elseif owner ~= nonce then
        return ANSWER.lost
    elseif step == 'decide' then
        if state == 'begun' and now_ms >= busy_until_ms then
            return ANSWER.lost
        elseif tonumber(shard_version) > prepared_version then
            return ANSWER.changed
        end
        return ANSWER.decided, 'decided\n' .. nonce .. '\n' .. text(now_ms) .. '\n' .. payload
    end
    if payload ~= '' then
        read_idempotency_record() -- so that its nonces are kept
        keep_idempotency_record(payload)
    end
    return ANSWER.ended, REMOVED
end

local function answer_step(commit_records_at, step, transaction_id, nonce, prepared_version, payload_at)
    local record = redis.call('HGET', KEYS[commit_records_at], transaction_id)
    local answer, new_record = take_step(record, step, nonce, prepared_version, ARGV[payload_at])
    if new_record ~= nil then
        slots(commit_records, commit_records_at)[transaction_id] = new_record
    end
    return answer
end

local function main()
    local answers = answer_each(answer_step, nil, KEEPS_OWN_RECORDS)
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
end
