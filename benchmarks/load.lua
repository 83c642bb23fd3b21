-- Sends the files BODY... in turn and prints one line of JSON: wrk ... --script load.lua URL -- TYPE BODY...
-- Latencies are in ms. wrk counts a status of 400 or more as an error.

local requests, turn = {}, 0

function init(args)
   local headers = {["Content-Type"] = args[1]}
   for number = 2, #args do
      local file = assert(io.open(args[number], "rb"))
      requests[#requests + 1] = wrk.format("POST", "/invocations", headers, file:read("*a"))
      file:close()
   end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      '{"per_second": %f, "p50": %f, "p99": %f, "responses": %d, "errors": %d}\n',
      summary.requests / summary.duration * 1e6,
      latency:percentile(50) / 1000,
      latency:percentile(99) / 1000,
      summary.requests,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout
   ))
end
