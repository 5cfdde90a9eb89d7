-- For wrk: each request is a signed command to one phone. REQUESTS names a file with one request per line:
-- Idempotency-Key, signature and body, with tabs between them. The warm-up uses the first part of the requests, the
-- measurement the rest.
local requests = {}
local shared = { ["Content-Type"] = "application/json", ["X-Admin"] = os.getenv("SIGNED_BY"), ["X-Timestamp"] = os.getenv("SIGNED_AT") }
for line in io.lines(os.getenv("REQUESTS")) do
  local key, signature, body = line:match("([^\t]*)\t([^\t]*)\t(.*)")
  local head = { ["Idempotency-Key"] = key, ["X-Signature"] = signature }
  for name, value in pairs(shared) do head[name] = value end
  requests[#requests + 1] = { head, body }
end

local number = os.getenv("PART") == "warm-up" and 0 or math.floor(#requests * 0.3)

function request()
  number = number % #requests + 1
  return wrk.format("POST", "/admin/command", requests[number][1], requests[number][2])
end
