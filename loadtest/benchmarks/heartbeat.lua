-- For wrk: each request is the heartbeat of a phone chosen at random. TOKENS names a file with one device token per
-- line.
local heads = {}
for token in io.lines(os.getenv("TOKENS")) do
  heads[#heads + 1] = { ["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. token }
end
math.randomseed(os.time())

local body = '{"status":{"battery_pct":71,"charging":false,"network":"cellular","uptime_seconds":431999,'
  .. '"free_storage_mb":10240,"foreground_app":"com.example.kiosk"},"agent_version":"1.0.0"}'

function request()
  return wrk.format("POST", "/v1/heartbeat", heads[math.random(#heads)], body)
end
