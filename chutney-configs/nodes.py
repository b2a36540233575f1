"""What the networks share: their nodes. For Chutney of 2021, which has torrc templates, and for later ones, which have none.

testnet sets TESTNET_SLICE, TESTNET_LISTEN, TESTNET_TORRC and TESTNET_AUTHORITY_TORRC; without them a network is one by itself.
"""

import os
import re
import string

TEMPLATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torrc_templates")

# 127.N, of which each node has an address. testnet sets it, so that networks are side by side.
SLICE = os.environ.get("TESTNET_SLICE", "127.63")
# testnet holds a socket on the standard input of each tor, which ends when that closes.
OWNED = "TESTNET_SLICE" in os.environ


def nodes(Node, unlisted=0, ipv6=False, voting_interval=10, consensus_params=()):
    """The nodes of a network: four authorities, five middles, two exits, a client. In the order in which they start fast:
    relays have to upload their descriptors before the first vote."""
    made = []

    def add(role, index, **kind):
        octet = {"authority": 1, "middle": 2, "exit": 3, "client": 4, "unlisted": 5}[role]
        name = {"authority": "auth"}.get(role, role) + ("" if role == "client" else str(index))
        ip = "%s.%d.%d" % (SLICE, octet, index)
        # All have the one IPv6 address: the port tells nodes and networks apart.
        orport = int(SLICE.split(".")[1]) * 100 + len(made) if ipv6 else 9001
        if ipv6 and "relay" in kind:
            kind["ipv6_addr"] = "[::1]"
        facts = dict(
            slice=SLICE,
            nick=name,
            orport=orport,
            orports=orports(ip, orport, ipv6),
            dirport=9030,
            socksport=9050,
            controlport=9051,
            daemon=int(not OWNED),
            owner="__OwningControllerFD 0" if OWNED else "",
            has_ipv6=int(ipv6),
            voting_interval=voting_interval,
            consensus_params="ConsensusParams " + " ".join(consensus_params) if consensus_params else "",
            extra=os.environ.get("TESTNET_TORRC", ""),
            extra_authority=os.environ.get("TESTNET_AUTHORITY_TORRC", ""),
        )
        try:
            node = Node(tag=name, ip=ip, torrc=role + ".tmpl", torrc_template_path=[TEMPLATES], **kind, **facts)
        except TypeError:  # a later Chutney: it writes the torrc itself, and adds a text at the end
            facts["owner"] = ""  # and has the standard input of the tors
            text = render(role + ".tmpl", dict(facts, ip=ip))
            node = Node(tag=name, ip=ip, extra_raw_torrc=text, disableipv6=not ipv6, **kind)
        made.append(node)

    for index in range(1, 6):
        add("middle", index, relay=1)
    for index in range(1, 3):
        add("exit", index, relay=1, exit=1)
    for index in range(1, 5):
        add("authority", index, relay=1, authority=1)
    add("client", 1, client=1)
    for index in range(1, unlisted + 1):
        add("unlisted", index)
    return made


def orports(ip, port, ipv6):
    """Where a relay is reached. With TESTNET_LISTEN a delayed link stands on `port`, and tor listens behind it."""
    listen = os.environ.get("TESTNET_LISTEN")
    if listen:
        lines = ["ORPort %s:%d IPv4Only NoListen" % (ip, port), "ORPort %s:%s IPv4Only NoAdvertise" % (ip, listen)]
    else:
        lines = ["ORPort %s:%d IPv4Only" % (ip, port)]
    return "\n".join(lines + ["ORPort [::1]:%d IPv6Only" % port if ipv6 else "AddressDisableIPv6 1"])


def render(template, facts):
    """A template without what later Chutneys write themselves. Of two lines the later one counts, but flags are added up."""
    with open(os.path.join(TEMPLATES, template)) as file:
        text = file.read()

    def included(name):
        return "" if name[1].startswith("2021/") else render(name[1], facts)

    text = re.sub(r"\$\{include:([^}]*)\}", included, text)
    return string.Template(text).safe_substitute(facts)
