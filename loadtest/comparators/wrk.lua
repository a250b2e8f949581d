-- The client of all contenders: each request redeems its own code. Only for one thread (wrk -t1).
-- Environment: BENCH_CODES, a file with one code a line, all of the same width; BENCH_FIRST, how many of
-- them are used already; BENCH_KEY, the API key. After the last code it repeats that code, which is refused.
local codes, width, at, number, head, last

function init()
    local file = assert(io.open(os.getenv('BENCH_CODES'), 'rb'))
    codes = file:read('*a')
    file:close()
    width = codes:find('\n', 1, true)
    number = tonumber(os.getenv('BENCH_FIRST'))
    at = number * width + 1
    last = #codes - width + 1
    local body = #'{"code": "", "user": "user-0000000"}' + width - 1
    head = table.concat({
        'POST /v1/redemptions HTTP/1.1',
        'Host: localhost',
        'Authorization: Bearer ' .. os.getenv('BENCH_KEY'),
        'Content-Type: application/json',
        'Content-Length: ' .. body,
        '',
        '{"code": "',
    }, '\r\n')
end

function request()
    local code = codes:sub(at, at + width - 2)
    local user = string.format('", "user": "user-%07d"}', number)
    if at < last then
        at = at + width
        number = number + 1
    end
    return head .. code .. user
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        'result {"requests":%d,"refused":%d,"broken":%d,"seconds":%.6f,"p50_ms":%.3f,"p99_ms":%.3f}\n',
        summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
        summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
    ))
end
