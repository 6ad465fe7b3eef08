-- What the rules of a dispatcher cannot say: how long jobs take, and waiting for a moment.
-- Arguments: service time in ms until it is measured, and how long a refusal of a server is held back, in ms.
local given_ms, hold_ms = ...
given_ms, hold_ms = tonumber(given_ms), tonumber(hold_ms)

local PRIOR_JOBS = 20 -- the given time counts as much as so many jobs
local WINDOW = 512 -- jobs that HAProxy's own averages go back
local KEPT_MS = 200

local service_ms, read_at = given_ms, nil

-- Mean time of a job at a server: HAProxy's mean of whole requests less its mean in the line.
core.register_fetches("service_ms", function(_)
    local now = core.now()
    local now_ms = now.sec * 1000 + now.usec // 1000
    if read_at == nil or now_ms - read_at >= KEPT_MS or now_ms < read_at then
        read_at = now_ms
        local stats = core.backends["gpus"]:get_stats()
        local jobs = math.min(tonumber(stats["hrsp_2xx"]) or 0, WINDOW)
        local mean_ms = (tonumber(stats["ttime"]) or 0) - (tonumber(stats["qtime"]) or 0)
        if mean_ms > 0 then
            service_ms = (given_ms * PRIOR_JOBS + mean_ms * jobs) / (PRIOR_JOBS + jobs)
        end
    end
    return math.max(1, math.floor(service_ms + 0.5))
end)

core.register_action("hold", { "http-res" }, function(_)
    core.msleep(hold_ms)
end)

-- The round trip between regions, for a fleet on one machine.
core.register_action("delay", { "http-req" }, function(txn)
    core.msleep(txn:get_var("txn.delay_ms"))
end)
