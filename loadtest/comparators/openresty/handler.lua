-- Peer: sends one EVALSHA for each request, with lua-resty-redis and its connection pool.
local cjson = require 'cjson.safe'
local found, redis = pcall(require, 'resty.redis')
if not found then
    redis = require 'nginx.redis' -- Debian's name for it
end

local AUTHORIZATION = 'Bearer ' .. os.getenv('PEER_KEY')
local CAMPAIGN = os.getenv('PEER_CAMPAIGN')
local SOCKET = 'unix:' .. os.getenv('PEER_REDIS_SOCKET')
local SHA = os.getenv('PEER_SHA')
local TIMEOUT_MS = 2000
local IDLE_MS, POOL = 60000, 512

local function answer(status, content_type, body)
    ngx.status = status
    ngx.header.content_type = content_type
    ngx.header.content_length = #body
    ngx.print(body)
end

local function refuse(status, code)
    answer(status, 'application/problem+json', cjson.encode({ status = status, code = code }))
end

local function call(code, user)
    local store = redis:new()
    store:set_timeout(TIMEOUT_MS)
    local ok, err = store:connect(SOCKET)
    if not ok then
        return nil, err
    end
    local words
    words, err = store:evalsha(SHA, 3, 'peer:campaign', 'peer:codes', 'peer:events', code, code:sub(-4), user)
    if words then
        store:set_keepalive(IDLE_MS, POOL)
    end
    return words, err
end

local function redeem()
    if ngx.var.http_authorization ~= AUTHORIZATION then
        return refuse(401, 'unauthenticated')
    end
    ngx.req.read_body()
    local asked = cjson.decode(ngx.req.get_body_data() or '')
    if type(asked) ~= 'table' or type(asked.code) ~= 'string' or type(asked.user) ~= 'string' then
        return refuse(400, 'malformed_request')
    end
    local words, err = call(asked.code, asked.user)
    if not words then
        ngx.log(ngx.ERR, err)
        return refuse(503, 'store_unavailable')
    end
    if words[1] ~= 'redeemed' then
        return refuse(409, words[1])
    end
    local id = words[2]
    answer(200, 'application/json', cjson.encode({
        id = id,
        status = 'redeemed',
        campaign = CAMPAIGN,
        code = '••••-••••-••••-' .. asked.code:sub(-4),
        user = asked.user,
        amount = tonumber(words[3]),
        currency = words[4],
        redeemed_at = os.date('!%Y-%m-%dT%H:%M:%SZ', tonumber(id:match('^%d+')) / 1000),
        replayed = false,
    }))
end

return { redeem = redeem }
