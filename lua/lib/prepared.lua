-- Codes that are prepared for a cross-shard transaction: they are counted as used, and nobody else can use them, but no event
-- says so before the transaction is decided. Preparing leaves three things:
--   in the hash of prepared codes, under the nonce of the transaction's worker: {transaction, the parts of prepare.lua}
--   in the hash of held codes: how many parts of all transactions the code is prepared for (`prepared_field`)
--   in the hash of holds: PREPARED in place of the record of a hold that the transaction uses up

-- @include lib/description
-- @include lib/holds

local PREPARED = 'prepared'
local MARK = '\31' -- no order contains it

local function prepared_field()
    return code_name() .. ':' .. MARK
end

-- Returns for how many parts of transactions the attempt's code is prepared.
local function count_prepared()
    local field = prepared_field()
    local count = work.held[field]
    if count == nil then
        count = redis.call('HGET', held_key, field)
    end
    return count and tonumber(count) or 0
end

local function change_prepared(by)
    local count = count_prepared() + by
    work.held[prepared_field()] = count > 0 and text(count) or REMOVED
end
