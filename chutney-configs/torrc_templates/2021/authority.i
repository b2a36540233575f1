# What every authority needs, likewise.
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
DirPort ${ip}:${dirport}
