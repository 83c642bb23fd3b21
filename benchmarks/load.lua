-- What wrk sends, and one line of JSON at the end: wrk ... --script load.lua URL -- TYPE BODY...
-- The bodies, read from files, take turns. Latencies are in ms; wrk counts answers above 399 as errors.

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
      '{"per_second": %f, "p50": %f, "p99": %f, "answered": %d, "errors": %d}\n',
      summary.requests / summary.duration * 1e6,
      latency:percentile(50) / 1000,
      latency:percentile(99) / 1000,
      summary.requests,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout
   ))
end
