-- Makes wrk send the requests of a file (see town.as_replay), each thread its own share of them, and tell what came
-- of it as one line of JSON. Arguments: the file, then "once" to stop where the file ends, or "again" to begin anew.

local threads = 0

function setup(thread)
    thread:set('number', threads)
    threads = threads + 1
end

function init(arguments)
    local file = assert(io.open(arguments[1], 'rb'))
    local packed = file:read('*a')
    file:close()
    local at, n = 1, 0
    requests, sent, once = {}, 0, arguments[2] == 'once'
    -- With one thread, as here, the share of thread 0 is everything.
    while at <= #packed do
        local a, b, c, d = packed:byte(at, at + 3)
        local length = a + b * 256 + c * 65536 + d * 16777216
        requests[#requests + 1] = packed:sub(at + 4, at + 3 + length)
        at, n = at + 4 + length, n + 1
    end
    packed = nil
    collectgarbage()
end

function request()
    sent = sent + 1
    if sent > #requests then
        if once then
            wrk.thread:stop()
        end
        sent = 1
    end
    return requests[sent]
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '\nREPORT {"answers": %d, "duration_us": %d, "bytes": %d, "not_2xx": %d, "lost": %d, "p50_us": %d, "p99_us": %d}\n',
        summary.requests, summary.duration, summary.bytes, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout,
        latency:percentile(50), latency:percentile(99)))
end
