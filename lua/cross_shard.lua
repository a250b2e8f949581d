#!lua
-- A combined redemption over several shards, on the shard where its key belongs: who works on it, and from
-- the moment that it is decided what must be done, whoever does it (engine/redemption/cross_shard.py).
-- `step` is `begin`: nobody else is to work on it for BUSY_MS; `decide`: keep `payload`;
-- `end`: nothing is left to do; a receipt of `payload` is kept, if there is one.
-- With `begin` its key is claimed, as claim_key.lua does: whoever uses it for something else is told so.
-- Answers, one for each attempt: `begun`, and on a line of its own who had begun it before and is gone;
-- `decided`, `ended`; `busy`: somebody works on it; `lost`: somebody
-- took it over; `resume`, and on lines of their own what was decided; `replayed <the first answer>`.
local attempt_width = 24

-- @include lib/preamble
-- @include lib/idempotency

local BUSY_MS = 10000
local spans = {}

local function take(spans_at, step, span_id, nonce, payload)
    local record = redis.call('HGET', KEYS[spans_at], span_id)
    local state, owner, busy_until_ms = string.match(record or '', '^(%a+)\n(%x+)\n(%d+)\n')
    if step == 'begin' then
        if state == 'decided' then
            return 'resume\n' .. record
        elseif state and now_ms < tonumber(busy_until_ms) then
            return 'busy'
        end
        slots(spans, spans_at)[span_id] = 'begun\n' .. nonce .. '\n' .. text(now_ms + BUSY_MS) .. '\n'
        return owner and 'begun\n' .. owner or 'begun'
    elseif owner ~= nonce then
        return 'lost'
    elseif step == 'decide' then
        if state == 'begun' and now_ms >= tonumber(busy_until_ms) then
            return 'lost'
        end
        slots(spans, spans_at)[span_id] = 'decided\n' .. nonce .. '\n' .. text(now_ms) .. '\n' .. payload
        return 'decided'
    end
    slots(spans, spans_at)[span_id] = REMOVED
    if payload ~= '' then
        keep_receipt(payload)
    end
    return 'ended'
end

local answers = { 'ok' }
for at = 1, #fields, attempt_width do
    read_attempt(at)
    local spans_at, step, span_id, nonce, payload_at = unpack(fields, at + 19, at + 23)
    local answer = step == 'begin' and read_receipt()
    if answer == 'replayed claimed' then
        answer = nil
    elseif not answer and step == 'begin' then
        keep_receipt('claimed')
    end
    if not answer then
        answer = take(spans_at, step, span_id, nonce, ARGV[payload_at])
    end
    answers[#answers + 1] = answer
end
write_pending()
for at, records in pairs(spans) do
    for span_id, record in pairs(records) do
        if record == REMOVED then
            redis.call('HDEL', KEYS[at], span_id)
        else
            redis.call('HSET', KEYS[at], span_id, record)
        end
    end
end
return answers
