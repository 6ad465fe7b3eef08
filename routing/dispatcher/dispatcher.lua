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
