-- All words that scripts answer with, and the format of the text after each word.
-- A script uses ANSWER.word, or ANSWERS.group for the set of a group's words. The loader replaces both by their text. So a
-- word that is not in this table is an error when the script is loaded, and no call has to build the table.
-- tests/lua/test_answers.py compares it with the words that the engine knows.
return {
    call = { -- the first element of every reply
        ok = 'an answer for each attempt',
        stale = '',
        epoch = '<number>',
        published = '',
        current = '',
        gap = '',
        behind = '',
    },
    success = {
        redeemed = '<event id> <amount>[ <balance left>][\n<the hold it was>]',
        redeemable = '',
        held = '<hold id> <amount> <expires at, ms>[ <balance left>]',
        released = '<event id>\n<the hold it was>',
        rolled_back = '<event id> <amount> <given back so far> <balance left>',
        adjusted = '<event id> <balance left>',
        voided = '<event id, or - without one> <1 if void by batch or range, else 0>',
        unvoided = '<event id, or - without one> <1 if void by batch or range, else 0>',
        claimed = '',
    },
    refusal_of_campaign = {
        campaign_inactive = '',
        campaign_not_started = '',
        campaign_ended = '',
        sold_out = '',
        budget_exceeded = '',
        customer_limit_exceeded = '',
    },
    refusal_of_code = {
        already_redeemed = '',
        code_void = '',
        uses_exceeded = '',
        insufficient_balance = '',
        invalid_amount = '',
    },
    refusal_of_hold = {
        hold_not_found = '',
        hold_expired = '',
        held_by_another_order = '<seconds until it is not>',
    },
    refusal_of_rollback = {
        already_rolled_back = '',
        rollback_exceeds_redeemed = '',
    },
    refusal_of_key = {
        idempotency_key_reused = '',
        request_replayed = '', -- its nonce was used with this key before
    },
    undecided = { -- nothing was done; the engine must do something first, and call again
        unpublished = '', -- the shard does not have the campaign as the caller has it; of a call: no configuration at all
        holds_expired = '', -- expired holds must be given back first
        stale_hold = '', -- the hold's record has changed since the caller read it
        in_use = '', -- a combined order over several shards is about to take the code
    },
    several = { -- followed by other answers
        replayed = '<the first answer>',
        refused = '\n<the answer for each code, a line each>',
    },
    cross_shard_step = {
        begun = '[\n<token of the worker that had begun before>]',
        decided = '',
        changed = '',
        ended = '',
        busy = '',
        lost = '',
        resume = '\n<commit record>',
    },
    cross_shard_code = {
        prepared = '',
        aborted = '',
    },
    -- These are not stored as idempotency records, because a later attempt with the same key may get another answer. Of
    -- `held_by_another_order` it is stored that the key belongs to this request (lib/idempotency).
    not_kept = {
        unpublished = true,
        holds_expired = true,
        stale_hold = true,
        in_use = true,
        held_by_another_order = true,
    },
}
