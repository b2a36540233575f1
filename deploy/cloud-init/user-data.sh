#!/bin/sh
# First start of a machine that is to be an exit bridge, on any cloud: cloud-init runs this as root. `eebt` fills in what
# stands between at signs. Whatever fails ends the machine, for one that does not serve shall cost nothing.
set -eu
umask 077
phase() { echo "eebt: $1 after $(cut -d ' ' -f 1 /proc/uptime) s" | tee /dev/kmsg 2>/dev/null || true; }
trap 'status=$?; [ $status = 0 ] || { phase "failed ($status)"; systemctl poweroff; }' EXIT

# Its end, first of all. An absolute time, looked at again after each restart; and so long from now at most, should the clock
# be wrong.
cat > /etc/systemd/system/eebt-expiry.service <<'END'
[Unit]
Description=The end of this exit bridge
[Service]
Type=oneshot
ExecStart=/usr/bin/systemctl poweroff
END
cat > /etc/systemd/system/eebt-expiry.timer <<'END'
[Timer]
OnCalendar=@EXPIRES@
OnActiveSec=@LIFETIME@
Persistent=true
AccuracySec=1s
[Install]
WantedBy=timers.target
END
systemctl daemon-reload
systemctl enable --now --quiet eebt-expiry.timer
phase "expiry is set"
# The timer never fires for what is past.
[ "$(date +%s)" -lt @EXPIRES_SECONDS@ ] || { phase "it has expired"; exit 1; }

# No remote login, and one port in. The exit bridge itself never gets to see the cloud's metadata, which has its keys.
@SSH@systemctl disable --now --quiet ssh.service ssh.socket 2>/dev/null || true
id eebt-bridge >/dev/null 2>&1 || useradd --system --home-dir /var/lib/eebt-bridge --shell /usr/sbin/nologin eebt-bridge
command -v nft >/dev/null && command -v curl >/dev/null || {
    apt-get update -qq && apt-get install -y -qq --no-install-recommends nftables curl >/dev/null
}
cat > /etc/nftables.conf <<END
#!/usr/sbin/nft -f
flush ruleset
table inet eebt {
    chain in {
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established,related accept
        ct state invalid drop
        icmp type echo-request drop
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, packet-too-big, destination-unreachable, time-exceeded } accept
        icmp type { destination-unreachable, time-exceeded } accept
        udp sport 67 udp dport 68 accept
        udp sport 547 udp dport 546 accept
        tcp dport { @PORTS_IN@ } accept
    }
    chain out {
        type filter hook output priority 0; policy accept;
        meta skuid $(id -u eebt-bridge) ip daddr 169.254.0.0/16 meta l4proto { tcp, udp } th dport 53 accept
        meta skuid $(id -u eebt-bridge) ip daddr 169.254.0.0/16 drop
        meta skuid $(id -u eebt-bridge) ip6 daddr { fd00:ec2::/32, fe80::/10 } drop
    }
    chain forward { type filter hook forward priority 0; policy drop; }
}
END
nft -f /etc/nftables.conf
systemctl enable --quiet nftables.service
phase "firewall is up"

# The program: in the image, or fetched; no other than the one that was meant.
program=/usr/local/bin/eebt-bridge
if ! echo "@SHA256@  $program" | sha256sum --check --status 2>/dev/null; then
    url='@URL@'
    [ -n "$url" ]
    umask 022
    curl --fail --silent --show-error --location --proto '=https' --retry 5 --retry-all-errors --max-time 300 \
        --output "$program.new" "$url"
    echo "@SHA256@  $program.new" | sha256sum --check --status || { phase "the program is not the one that was meant"; exit 1; }
    chmod 755 "$program.new"
    mv "$program.new" "$program"
    umask 077
fi
phase "program is there"

install -d -o eebt-bridge -g eebt-bridge -m 700 /var/lib/eebt-bridge /var/lib/eebt-bridge/keys /var/lib/eebt-bridge/state
install -d -o root -g eebt-bridge -m 750 /etc/eebt-bridge
cd /var/lib/eebt-bridge/keys
@KEYS@
cd /
chown -R eebt-bridge:eebt-bridge /var/lib/eebt-bridge
base64 -d > /etc/eebt-bridge/bridge.toml <<'END'
@CONFIG@
END
base64 -d > /etc/eebt-bridge/network.toml <<'END'
@NETWORK@
END
# Where relays reach it, if the cloud translates addresses (EC2) or says so (Hetzner); else it has the address itself.
address=$(python3 -c 'import json; print(json.load(open("/run/cloud-init/instance-data.json"))["ds"]["meta_data"].get("public-ipv4", ""))' 2>/dev/null || true)
echo "ADDRESS=${address:+--set=address=$address:@PORT@}" > /etc/eebt-bridge/environment
chown root:eebt-bridge /etc/eebt-bridge/*
chmod 640 /etc/eebt-bridge/*

cat > /etc/systemd/system/eebt-bridge.service <<'END'
[Unit]
Description=Exit bridge
Wants=network-online.target
After=network-online.target nftables.service
[Service]
User=eebt-bridge
EnvironmentFile=/etc/eebt-bridge/environment
ExecStart=/usr/local/bin/eebt-bridge run --config /etc/eebt-bridge/bridge.toml $ADDRESS
# Its bridge line, which belongs in no log.
StandardOutput=null
StandardError=journal
Restart=on-failure
RestartSec=5
TimeoutStopSec=45
LimitNOFILE=65536
MemoryMax=80%
TasksMax=64
UMask=0077
ReadWritePaths=/var/lib/eebt-bridge
NoNewPrivileges=yes
CapabilityBoundingSet=
LockPersonality=yes
MemoryDenyWriteExecute=yes
PrivateDevices=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable --now --quiet eebt-bridge.service
phase "exit bridge is started"

# When it serves, for whoever reads the console.
for _ in $(seq 300); do
    if curl --fail --silent --max-time 2 --output /dev/null http://@STATUS@/ready; then
        phase "exit bridge serves"
        exit 0
    fi
    sleep 1
done
phase "exit bridge does not serve"
exit 1
