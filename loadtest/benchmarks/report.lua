-- For wrk: each request is the result of the command REQUEST_ID on the next phone, so that no phone reports twice.
-- TOKENS names a file with one device token per line. The warm-up uses the first part of the phones, the measurement
-- the rest.
local heads = {}
for token in io.lines(os.getenv("TOKENS")) do
  heads[#heads + 1] = { ["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. token }
end

local body = '{"request_id":"' .. os.getenv("REQUEST_ID") .. '","status":"succeeded","message":"done",'
  .. '"output":{"pid":4711,"took_ms":12},"finished_at":"2026-01-01T00:00:00Z","via":"push"}'

local phone = os.getenv("PART") == "warm-up" and 0 or math.floor(#heads * 0.4)

function request()
  phone = phone % #heads + 1
  return wrk.format("POST", "/v1/action-result", heads[phone], body)
end
