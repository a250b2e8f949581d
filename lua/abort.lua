#!lua
-- Gives back the codes that were prepared for a cross-shard transaction that was not decided, and the holds that it would have
-- used up. The attempts are the parts of prepare.lua, in the same order. Repeating it is harmless.
-- Answers {'ok', answer} as lib/answer_together, with `aborted` for each code.

-- @include lib/answer_together
-- @include lib/code_state
-- @include lib/settle_prepared
-- @include lib/usage

local function give_back(prepared_at, nonce)
    local refusal, campaign, taken, _, hold_id, hold_record = settle_part(prepared_at, nonce, ANSWER.aborted)
    if refusal then
        return refusal
    elseif hold_id ~= '' then
        work.holds[hold_id], work.expiries[hold_id] = hold_record, parse_hold(hold_id, hold_record).expires_at_ms
        work.held[held_field(campaign)] = hold_id
    else
        count_use(campaign, -1, -(tonumber(taken) or 0))
        if campaign.kind == 'single' and read_state() == HELD then
            set_state(FRESH)
        end
    end
    return ANSWER.aborted
end

local function main()
    local reply = answer_together(give_back, ANSWER.aborted)
    remove_settled(reply, ANSWER.aborted)
    return reply
end
