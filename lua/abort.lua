#!lua
-- Gives back the codes that were prepared for a cross-shard transaction that was not decided, and the holds that it would have
-- used up. The attempts are the parts of prepare.lua, in the same order. Repeating it is harmless.
-- Answers {'ok', answer} as lib/answer_together, with `aborted` for each code.

-- @include lib/answer_together
-- @include lib/campaign
-- @include lib/code_state
-- @include lib/prepared
-- @include lib/usage

local parts, number, record_at, record_name

local function give_back(prepared_at, nonce)
    if not number then
        parts, number, record_at, record_name = read_parts(prepared_at, nonce), 0, prepared_at, nonce
    end
    local campaign = read_campaign()
    if not parts then
        return ANSWER.aborted
    elseif not campaign.id then
        return ANSWER.unpublished
    end
    number = number + 1
    local taken, _, hold_id, hold_record = unpack(parts[number], 6, 9)
    if hold_id ~= '' then
        work.holds[hold_id], work.expiries[hold_id] = hold_record, parse_hold(hold_id, hold_record).expires_at_ms
        work.held[held_field(campaign)] = hold_id
    else
        count_use(campaign, -1, -(tonumber(taken) or 0))
        if campaign.kind == 'single' and read_state() == HELD then
            set_state(FRESH)
        end
    end
    change_prepared(-1)
    return ANSWER.aborted
end

local reply = answer_together(give_back, 2, ANSWER.aborted)
if number and number > 0 and string.match(reply[2], '^%S+') == ANSWER.aborted then
    redis.call('HDEL', KEYS[record_at], record_name)
end
return reply
