# Instead of 25 MB of text that each tor would parse.
GeoIPFile /dev/null
GeoIPv6File /dev/null
SafeLogging 0
NumCPUs 1
ShutdownWaitLength 0
${owner}
${extra}
