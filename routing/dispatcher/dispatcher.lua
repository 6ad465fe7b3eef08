-- What the rules of a dispatcher cannot say: how long jobs take, and waiting for a moment.
-- Arguments: service time in ms until it is measured, and how long a refusal of a server is held back, in ms.
local given_ms, hold_ms = ...
given_ms, hold_ms = tonumber(given_ms), tonumber(hold_ms)

local PRIOR_JOBS = 20 -- the given time counts as much as so many jobs
local MEMORY_JOBS = 512 -- of those that were measured
local EVERY_MS = 100

-- Mean time that a job takes of a server, by Little's law: time that servers were taken, for each job that they began.
-- (HAProxy's own means do not tell: that of responses ends with their headers, and that of sessions has idle time in it.)
local taken_ms, jobs = given_ms * PRIOR_JOBS, PRIOR_JOBS
local began, looked_ms

local function clock_ms()
    local now = core.now()
    return now.sec * 1000 + now.usec / 1000
end

local function look()
    local stats, now_ms = core.backends["gpus"]:get_stats(), clock_ms()
    local at_servers = (tonumber(stats["scur"]) or 0) - (tonumber(stats["qcur"]) or 0)
    -- Each job that a server begins makes a connection or takes one. (`lbtot` leaves out those that waited in line.)
    local total = (tonumber(stats["connect"]) or 0) + (tonumber(stats["reuse"]) or 0)
    if began ~= nil and now_ms > looked_ms and total >= began then
        taken_ms = taken_ms + math.max(0, at_servers) * math.min(now_ms - looked_ms, 10 * EVERY_MS)
        jobs = jobs + total - began
        if jobs > MEMORY_JOBS then
            taken_ms, jobs = taken_ms * MEMORY_JOBS / jobs, MEMORY_JOBS
        end
    end
    began, looked_ms = total, now_ms
end

core.register_task(function()
    while true do
        look()
        core.msleep(EVERY_MS)
    end
end)

core.register_fetches("service_ms", function(_)
    return math.max(1, math.floor(taken_ms / jobs + 0.5))
end)

core.register_action("hold", { "http-res" }, function(_)
    core.msleep(hold_ms)
end)

-- The round trip between regions, for a fleet on one machine.
core.register_action("delay", { "http-req" }, function(txn)
    core.msleep(txn:get_var("txn.delay_ms"))
end)

-- What became of the jobs of each version and model: counters that `routing rollout` and `loadtests judge` compare.
local BOUNDS = { 0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10 } -- of a job's time, in multiples of the given one
local MOST_MODELS = 16
local counts, times, models = {}, {}, {}

local function label(text)
    return (text:gsub('[%c"\\]', "_"):sub(1, 200))
end

-- A model as its servers name it, once a server has answered; there are no more names than `MOST_MODELS`.
local function model_of(txn)
    local name = txn.f:res_hdr("x-stillmotion-model")
    if name == nil or name == "" then
        return ""
    end
    name = label(name)
    if models[name] == nil then
        if models[MOST_MODELS] ~= nil then
            return "others"
        end
        models[#models + 1] = name
        models[name] = true
    end
    return name
end

local function observe(labels, took_ms)
    local found = times[labels]
    if found == nil then
        found = { sum = 0, count = 0, buckets = {} }
        for i = 1, #BOUNDS do
            found.buckets[i] = 0
        end
        times[labels] = found
    end
    found.sum, found.count = found.sum + took_ms / 1000, found.count + 1
    for i, bound in ipairs(BOUNDS) do
        if took_ms <= bound * given_ms then
            found.buckets[i] = found.buckets[i] + 1
        end
    end
end

-- A fetch, since HAProxy 2.8 runs no action of Lua for answers of its own.
core.register_fetches("count", function(txn)
    local status, took_ms = txn.f:status(), tonumber(txn:get_var("txn.took_ms") or "")
    local of = string.format('version="%s",model="%s"', txn:get_var("txn.version") or "", model_of(txn))
    local by = took_ms ~= nil and "server" or "dispatcher"
    local labels = string.format('%s,code="%d",by="%s"', of, status, by)
    counts[labels] = (counts[labels] or 0) + 1
    -- The headers of a stream come before it is computed.
    if status == 200 and took_ms ~= nil and not (txn.f:res_hdr("content-type") or ""):find("event-stream", 1, true) then
        observe(of, took_ms)
    end
    return 1
end)

core.register_service("jobs", "http", function(applet)
    local lines = { "# TYPE stillmotion_dispatcher_jobs_total counter" }
    for labels, count in pairs(counts) do
        lines[#lines + 1] = string.format("stillmotion_dispatcher_jobs_total{%s} %d", labels, count)
    end
    lines[#lines + 1] = "# TYPE stillmotion_dispatcher_job_seconds histogram"
    for labels, found in pairs(times) do
        local name = "stillmotion_dispatcher_job_seconds"
        for i, bound in ipairs(BOUNDS) do
            local le = bound * given_ms / 1000
            lines[#lines + 1] = string.format('%s_bucket{%s,le="%.6g"} %d', name, labels, le, found.buckets[i])
        end
        lines[#lines + 1] = string.format('%s_bucket{%s,le="+Inf"} %d', name, labels, found.count)
        lines[#lines + 1] = string.format("%s_sum{%s} %.6f", name, labels, found.sum)
        lines[#lines + 1] = string.format("%s_count{%s} %d", name, labels, found.count)
    end
    local text = table.concat(lines, "\n") .. "\n"
    applet:set_status(200)
    applet:add_header("content-type", "text/plain; version=0.0.4")
    applet:add_header("content-length", tostring(#text))
    applet:start_response()
    applet:send(text)
end)
