"""Hetzner Cloud and DigitalOcean as far as `eebt` uses them: small, and strict where a leak would hide.

`rest_emulator.py hetzner|digitalocean` listens on a free port of 127.0.0.1, prints it, and ends when its stdin is closed.
The environment's TOKEN may do all, the same with "-readonly" behind it may read. Fields not known here are refused.

Hetzner: names are unique; a server is "initializing" when first seen, and "deleting" in the next list when it is gone.
DigitalOcean: names are not unique; a Droplet has no address the first two times it is seen; tags stay for ever.

Besides the API it answers, for the tests alone:
  POST /_test/faults  {"action", "skip", "times", "fault"}   the next calls of this action, after `skip` of them
  POST /_test/lag     {"calls"}                 new machines are missing from this many lists each
  POST /_test/hide    {"calls"}                 so are all that there are
  POST /_test/clear                             no faults, no lag, no calls so far; what is late comes all the same
  POST /_test/interrupt  {"id"}                 the machine powers off: it is still there, and still costs money
  POST /_test/double  {"id"}                    there is a second one of it
  POST /_test/vanish  {"id"}                    somebody else deleted it
  GET  /_test/state   machines that exist, tags, the calls so far, and how many machines were ever made

Actions are such as "POST /servers", "DELETE /droplets/{id}" and "GET /images/{id}". Faults: "lost" (done, and the answer is
lost), "cut" (not done, no answer), "late" (no answer, and done after 3 more lists of machines), "throttle", "capacity",
"quota", "denied", "down", "locked".
"""

import json
import os
import re
import socket
import sys
import threading
from collections import Counter
from datetime import datetime, timezone
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlencode, urlsplit

from faults import Faults

TOKEN = os.environ["TOKEN"]
OURS = ["fleet", "id", "attempt", "expires", "cost"]
PART = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOSTNAME = rf"{PART}(?:\.{PART})*"
LABEL = "[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LABEL_KEY = f"(?:{HOSTNAME}/)?{LABEL}"

LOCATIONS = [{"id": id, "name": name, "description": city, "city": city, "country": country, "network_zone": zone}
             for id, name, city, country, zone in [
                 (1, "fsn1", "Falkenstein", "DE", "eu-central"), (2, "nbg1", "Nuremberg", "DE", "eu-central"),
                 (3, "hel1", "Helsinki", "FI", "eu-central"), (4, "ash", "Ashburn, VA", "US", "us-east"),
                 (5, "hil", "Hillsboro, OR", "US", "us-west"), (6, "sin", "Singapore", "SG", "ap-southeast")]]
REGIONS = ["ams3", "fra1", "lon1", "nyc1", "nyc3", "sfo3", "sgp1"]
# Of both clouds: the cheapest is no longer sold, and the cheapest of the others is on the second page.
TYPES = [("cx", 22, True, LOCATIONS[:3], ["0.0055", "0.0110", "0.0260", "0.0520"]),
         ("cpx", 11, True, LOCATIONS, ["0.0070", "0.0120", "0.0220", "0.0420", "0.0880"]),
         ("cpx", 12, False, LOCATIONS, ["0.0104", "0.0160", "0.0280", "0.0510", "0.1010", "0.1510", "0.2010"]),
         ("ccx", 13, False, LOCATIONS, ["0.0200", "0.0390", "0.0780", "0.1550", "0.3100", "0.4640"]),
         ("cx", 33, False, LOCATIONS[:3], ["0.0100", "0.0180", "0.0340"]),
         ("cx", 23, False, LOCATIONS[:3], ["0.0060"]),
         ("cax", 11, False, LOCATIONS[:3], ["0.0064", "0.0103", "0.0200", "0.0394"])]
SIZES = [("512mb", 1, 0.5, 0.005, []),
         *((f"s-{cpus}vcpu-{gb}gb{brand}", cpus, gb, round(price * factor, 5), REGIONS)
           for cpus, gb, price in [(1, 1, 0.00893), (1, 2, 0.01786), (2, 2, 0.02679), (2, 4, 0.03571), (4, 8, 0.07143)]
           for brand, factor in [("", 1), ("-amd", 1.17), ("-intel", 1.18), ("-120gb-intel", 1.25)]),
         ("s-1vcpu-512mb-10gb", 1, 0.5, 0.00595, ["ams3", "fra1", "nyc1", "sgp1"])]


class Refused(Exception):
    """Status, the API's own word for it, and the field that is to blame."""

    def __init__(self, status, code, message, field=None):
        self.status, self.code, self.message, self.field = status, code, message, field


def named(item):
    return item.get("slug") or item["name"]


class Cloud:
    """What both have in common. A subclass has the words of its API, and what is for sale."""

    def __init__(self, sold):
        self.lock = threading.Lock()
        self.sold = sold  # path -> items
        self.machines = {}
        self.leaving = {}  # deleted, and still in the next list
        self.made = 0
        self.tags = set()
        self.faults = Faults()
        self.lag = 0
        self.late = []  # [lists until then, action, request]
        self.calls = Counter()
        self.routes = {f"GET /{path}": self.offer for path in sold}
        path, one = self.PATH, self.PATH.removesuffix("s")
        self.routes.update({
            f"GET /{path}": self.listed, f"GET /{path}/{{id}}": lambda request: (200, {one: self.show(self.find(request))}),
            f"POST /{path}": self.create, f"DELETE /{path}/{{id}}": self.delete})

    def answer(self, method, target, headers, data):
        """Status and JSON, or None for no answer."""
        url = urlsplit(target)
        with self.lock:
            if url.path.startswith("/_test/"):
                return 200, self.test(url.path.removeprefix("/_test/"), json.loads(data or b"{}"))
            path, _, id = url.path.removeprefix(self.BASE).partition("/")
            action = f"{method} /{path}/{{id}}" if id else f"{method} /{path}"
            request = SimpleNamespace(token=headers["Authorization"], url=f"http://{headers['Host']}{url.path}", path=path,
                                      id=id, query=dict(parse_qsl(url.query)), data=data)
            self.calls[action] += 1
            fault = self.faults.of(action)
            if fault == "cut":
                return None
            if fault == "late":
                self.late.append([3, action, request])
                return None
            if fault in self.ERRORS:
                return self.error(Refused(*self.ERRORS[fault]))
            answer = self.serve(action, request)
            return None if fault == "lost" else answer

    def serve(self, action, request):
        try:
            if request.token not in (f"Bearer {TOKEN}", f"Bearer {TOKEN}-readonly"):
                raise Refused(401, "unauthorized", "Unable to authenticate you.")
            if not action.startswith("GET ") and request.token != f"Bearer {TOKEN}":
                raise Refused(403, self.READ_ONLY, "This token may read, and no more.")
            if action not in self.routes:
                raise Refused(404, "not_found", "There is no such call.")
            return self.routes[action](request)
        except Refused as refused:
            return self.error(refused)

    def expect(self, is_so, field, message):
        if not is_so:
            raise Refused(422, self.INVALID, message, field)

    def fields(self, request):
        """The body, with all that is required, nothing unknown, and each of its type."""
        try:
            given = json.loads(request.data)
        except ValueError:
            given = None
        self.expect(isinstance(given, dict), "body", "is no JSON object")
        for field in self.REQUIRED:
            self.expect(field in given, field, "is required")
        for field, value in given.items():
            self.expect(isinstance(value, self.FIELDS.get(field, ())), field, "is unknown, or has the wrong type")
        self.expect(len(given.get("user_data", "").encode()) <= self.USER_DATA, "user_data", "is too long")
        return given

    def one(self, items, given, field):
        """By its name or its id."""
        found = [item for item in items if str(given[field]) in (named(item), str(item.get("id")))]
        self.expect(found, field, "is unknown")
        return found[0]

    def make(self, given, region, kind, image, ours):
        id, address = self.FIRST_ID + self.made, f"198.51.100.{self.made % 254 + 1}"
        self.made += 1
        self.machines[id] = SimpleNamespace(
            id=id, name=given["name"], given=given, region=region, kind=kind, image=image, ours=ours, address=address,
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), hidden=self.lag, seen=0, off=False)
        return self.machines[id]

    def find(self, request):
        machine = self.machines.get(int(request.id)) if request.id.isdecimal() else None
        if machine is None:
            raise Refused(404, "not_found", "The resource you requested could not be found.")
        return machine

    def status(self, machine):
        if machine.id in self.leaving:
            return "deleting"
        return "off" if machine.off else self.BOOTING if machine.seen < self.BOOTS_FOR else self.RUNNING

    def show(self, machine):
        """Once more: machines boot by being looked at."""
        view = self.view(machine)
        machine.seen += 1
        self.leaving.pop(machine.id, None)
        return view

    def listed(self, request):
        matches, found = self.matcher(request.query), []
        for machine in sorted([*self.machines.values(), *self.leaving.values()], key=lambda machine: machine.id):
            if matches(machine) and machine.hidden > 0:
                machine.hidden -= 1
            elif matches(machine):
                found.append(machine)
        answer = self.page(request, found, self.show)
        self.late = [[lists - 1, *call] for lists, *call in self.late]
        while self.late and self.late[0][0] == 0:
            self.serve(*self.late.pop(0)[1:])
        return answer

    def offer(self, request):
        wanted = {field: value for field, value in request.query.items() if field in ("name", "type", "architecture")}
        return self.page(request, [item for item in self.sold[request.path] if wanted.items() <= item.items()])

    def page(self, request, items, show=lambda item: item):
        default, most = self.PER_PAGE
        asked = [request.query.get("page", "1"), request.query.get("per_page", str(default))]
        self.expect(all(re.fullmatch("[1-9][0-9]*", number) for number in asked), "page", "is no number from 1 on")
        page, per_page = map(int, asked)
        self.expect(per_page <= most, "per_page", f"is more than {most}")
        shown = [show(item) for item in items[(page - 1) * per_page:page * per_page]]
        return 200, {request.path: shown, **self.around(request, page, per_page, len(items))}

    def test(self, what, given):
        if what == "faults":
            assert given["action"] in self.routes and given["fault"] in [*self.ERRORS, "lost", "cut", "late"], given
            self.faults.add(**given)
        elif what == "clear":
            self.faults.clear()
            self.calls.clear()
            self.lag = 0
        elif what == "lag":
            self.lag = given["calls"]
        elif what == "hide":
            for machine in self.machines.values():
                machine.hidden = given["calls"]
        elif what == "interrupt":
            self.machines[int(given["id"])].off = True
            self.machines[int(given["id"])].created = "2026-01-01T00:00:00Z"
        elif what == "double":
            machine = self.machines[int(given["id"])]
            self.make(machine.given, machine.region, machine.kind, machine.image, machine.ours)
        elif what == "vanish":
            del self.machines[int(given["id"])]
        elif what != "state":
            return {"error": "no such test call"}
        machines = [{"id": str(m.id), "region": named(m.region), "state": self.status(m), "tags": m.ours, "name": m.name,
                     "user_data": m.given.get("user_data", ""), "kind": named(m.kind), "image": named(m.image),
                     "ssh_keys": m.given.get("ssh_keys", [])} for m in self.machines.values()]
        return {"machines": machines, "groups": [], "tags": sorted(self.tags), "calls": dict(self.calls),
                "faulted": dict(self.faults.met), "made": self.made}


class Hetzner(Cloud):
    BASE, PATH, PER_PAGE, FIRST_ID, USER_DATA = "/v1/", "servers", (25, 50), 42000001, 32768
    BOOTING, BOOTS_FOR, RUNNING, INVALID, READ_ONLY = "initializing", 1, "running", "invalid_input", "token_readonly"
    REQUIRED = ["name", "server_type", "image"]
    FIELDS = {"name": str, "server_type": (str, int), "image": (str, int), "location": str, "labels": dict,
              "user_data": str, "ssh_keys": list, "public_net": dict}
    ERRORS = {
        "throttle": (429, "rate_limit_exceeded", "limit of 3600 requests per hour reached"),
        "capacity": (412, "resource_unavailable", "error during placement"),
        "quota": (403, "resource_limit_exceeded", "server limit exceeded"),
        "denied": (403, "forbidden", "insufficient permissions for this request"),
        "down": (503, "service_error", "an error occurred within a service"),
        "locked": (423, "locked", "the item you are trying to access is locked"),
    }

    def __init__(self):
        types = []
        for family, first, is_old, places, nets in TYPES:
            old = {"announced": "2025-01-01T00:00:00Z", "unavailable_after": "2025-07-01T00:00:00Z"} if is_old else None
            for step, net in enumerate(nets):
                types.append({
                    "id": len(types) + 1, "name": f"{family}{first + 10 * step}", "description": family, "cores": 2 << step,
                    "memory": 4.0 * 2**step, "disk": 40 << step, "cpu_type": "dedicated" if family == "ccx" else "shared",
                    "architecture": "arm" if family == "cax" else "x86", "deprecated": is_old, "deprecation": old,
                    "locations": [{"id": place["id"], "name": place["name"], "deprecation": self.ended(place, family, first) or old}
                                  for place in places],
                    "prices": [self.price(place, net) for place in places]})
        images = [{"id": id, "type": "system", "status": "available", "name": name, "architecture": arch, "deprecated": None}
                  for id, name, arch in [(101, "ubuntu-24.04", "x86"), (102, "debian-12", "x86"), (103, "debian-12", "arm"),
                                         (104, "debian-13", "x86"), (105, "debian-13", "arm")]]
        super().__init__({"locations": LOCATIONS, "server_types": types, "images": images})
        self.routes["GET /pricing"] = self.pricing

    @staticmethod
    def ended(place, family, first):
        """The cheapest is not sold any more in one place, which nothing but this tells."""
        is_it = (place["name"], family, first) == ("nbg1", "cx", 23)
        return {"announced": "2026-01-01T00:00:00Z", "unavailable_after": "2026-04-01T00:00:00Z"} if is_it else None

    @staticmethod
    def price(place, net):
        hour = Decimal(net) * Decimal("1" if place["network_zone"] == "eu-central" else "1.2")
        traffic = Decimal("7.4" if place["name"] == "sin" else "1")
        sums = {"price_hourly": hour, "price_monthly": hour * 624, "price_per_tb_traffic": traffic}
        money = {what: {"net": f"{sum:.10f}", "gross": f"{sum * Decimal('1.19'):.16f}"} for what, sum in sums.items()}
        return {"location": place["name"], "included_traffic": 20 << 40, **money}

    def pricing(self, _):
        ips = [{"type": type, "prices": [self.price(place, net) for place in LOCATIONS]}
               for type, net in [("ipv6", "0"), ("ipv4", "0.0008")]]
        types = [{field: type[field] for field in ("id", "name", "prices")} for type in self.sold["server_types"]]
        return 200, {"pricing": {"currency": "EUR", "vat_rate": "19.000000", "primary_ips": ips, "server_types": types}}

    def matcher(self, query):
        terms = list(filter(None, query.get("label_selector", "").split(",")))
        is_well = all(re.fullmatch(f"{LABEL_KEY}(==?({LABEL})?)?", term) for term in terms)
        self.expect(is_well, "label_selector", "is not understood")
        pairs = [term.replace("==", "=").partition("=") for term in terms]

        def matches(server):
            labels = server.given.get("labels", {})
            has = [labels.get(key) == value if equals else key in labels for key, equals, value in pairs]
            return all(has) and query.get("name", server.name) == server.name

        return matches

    def create(self, request):
        given = self.fields(request)
        self.expect(len(given["name"]) <= 253 and re.fullmatch(HOSTNAME, given["name"]), "name", "is no hostname")
        type = self.one(self.sold["server_types"], given, "server_type")
        self.expect(not type["deprecated"], "server_type", "is deprecated")
        images = [image for image in self.sold["images"] if image["architecture"] == type["architecture"]]
        image = self.one(images, given, "image")
        location = self.one(LOCATIONS, {"location": type["prices"][0]["location"], **given}, "location")
        is_sold = any(place["name"] == location["name"] and not place["deprecation"] for place in type["locations"])
        self.expect(is_sold, "location", "unsupported location for server type")
        labels = given.get("labels", {})
        for key, value in labels.items():
            is_well = re.fullmatch(LABEL_KEY, key) and isinstance(value, str) and re.fullmatch(f"({LABEL})?", value)
            self.expect(is_well, "labels", f"{key} is no label")
        self.expect(all(key == "operator" for key in given.get("ssh_keys", [])), "ssh_keys", "are unknown")
        for field, value in given.get("public_net", {}).items():
            self.expect(field in ("enable_ipv4", "enable_ipv6") and isinstance(value, bool), "public_net", "is unknown")
        if any(server.name == given["name"] for server in self.machines.values()):
            raise Refused(409, "uniqueness_error", "server name is already used")
        ours = {f"eebt:{what}": labels[f"eebt-{what}"] for what in OURS if f"eebt-{what}" in labels}
        server = self.make(given, location, type, image, ours)
        password = None if given.get("ssh_keys") else "SECRET-ROOT-PASSWORD"
        return 201, {"server": self.view(server), "action": self.action(server, "create_server"),
                     "next_actions": [self.action(server, "start_server")], "root_password": password}

    def delete(self, request):
        server = self.find(request)
        self.leaving[server.id] = self.machines.pop(server.id)
        return 200, {"action": self.action(server, "delete_server")}

    @staticmethod
    def action(server, command):
        return {"id": server.id * 10, "command": command, "status": "running", "progress": 0, "started": server.created,
                "finished": None, "resources": [{"id": server.id, "type": "server"}], "error": None}

    def view(self, server):
        net = {"enable_ipv4": True, "enable_ipv6": True, **server.given.get("public_net", {})}
        ipv4 = {"id": 1, "ip": server.address, "blocked": False} if net["enable_ipv4"] else None
        ipv6 = {"id": 2, "ip": "2001:db8::/64", "blocked": False} if net["enable_ipv6"] else None
        return {"id": server.id, "name": server.name, "status": self.status(server), "created": server.created,
                "public_net": {"ipv4": ipv4, "ipv6": ipv6, "floating_ips": [], "firewalls": []}, "private_net": [],
                "server_type": server.kind, "location": server.region, "image": server.image, "locked": False,
                "labels": server.given.get("labels", {}), "protection": {"delete": False, "rebuild": False}}

    def around(self, request, page, per_page, total):
        last = max(1, -(-total // per_page))
        return {"meta": {"pagination": {
            "page": page, "per_page": per_page, "previous_page": page - 1 if page > 1 else None,
            "next_page": page + 1 if page < last else None, "last_page": last, "total_entries": total}}}

    def error(self, refused):
        body = {"code": refused.code, "message": refused.message, "details": {}}
        if refused.field:
            body["message"] = f"invalid input in field '{refused.field}'"
            body["details"] = {"fields": [{"name": refused.field, "messages": [refused.message]}]}
        return refused.status, {"error": body}


class DigitalOcean(Cloud):
    BASE, PATH, PER_PAGE, FIRST_ID, USER_DATA = "/v2/", "droplets", (20, 200), 512000001, 65536
    BOOTING, BOOTS_FOR, RUNNING, INVALID, READ_ONLY = "new", 2, "active", "unprocessable_entity", "forbidden"
    REQUIRED = ["name", "region", "size", "image"]
    FIELDS = {"name": str, "region": str, "size": str, "image": (str, int), "ssh_keys": list, "tags": list,
              "user_data": str, "backups": bool, "ipv6": bool, "monitoring": bool, "with_droplet_agent": bool}
    ERRORS = {
        "throttle": (429, "too_many_requests", "API rate limit exceeded."),
        "capacity": (422, "unprocessable_entity", "Size is not available in this region."),
        "quota": (422, "unprocessable_entity", "creating this/these droplet(s) will exceed your droplet limit"),
        "denied": (403, "forbidden", "You are not authorized to perform this operation"),
        "down": (503, "service_unavailable", "The service is unavailable."),
        "locked": (422, "unprocessable_entity", "Droplet already has a pending event."),
    }
    LIMIT = 25
    KEYS = [4711, "4711", "3b:16:bf:e4:8b:00:8b:b8:59:8c:a9:d3:f0:19:45:fa"]

    def __init__(self):
        sizes = [{"slug": slug, "description": "Basic", "vcpus": cpus, "memory": int(1024 * gb), "disk": 25,
                  "transfer": 1.0, "price_hourly": price, "price_monthly": round(price * 672, 2), "regions": places,
                  "available": bool(places)}
                 for slug, cpus, gb, price, places in SIZES]
        regions = [{"slug": slug, "name": slug, "features": [], "available": slug in REGIONS,
                    "sizes": [size["slug"] for size in sizes if slug in size["regions"]]} for slug in ["nyc2", *REGIONS]]
        super().__init__({"sizes": sizes, "regions": regions})
        self.images = [{"id": id, "name": "x64", "distribution": "Debian", "slug": slug, "public": True, "regions": REGIONS,
                        "type": "base", "status": "available"} for id, slug in [(201, "debian-12-x64"), (202, "debian-13-x64")]]
        self.routes["GET /images/{id}"] = self.image
        self.routes["GET /account"] = lambda _: (200, {"account": {"droplet_limit": self.LIMIT, "status": "active"}})

    def image(self, request):
        for image in self.images:
            if request.id in (image["slug"], str(image["id"])):
                return 200, {"image": image}
        raise Refused(404, "not_found", "The resource you requested could not be found.")

    def matcher(self, query):
        self.expect(not {"name", "tag_name"} <= query.keys(), "name", "can not be combined with tag_name")
        if "tag_name" in query:
            return lambda droplet: query["tag_name"] in droplet.given.get("tags", [])
        return lambda droplet: query.get("name", droplet.name).lower() == droplet.name.lower()

    def create(self, request):
        given = self.fields(request)
        self.expect(re.fullmatch("[A-Za-z0-9.-]{1,255}", given["name"]), "name", "may have a-z, A-Z, 0-9, . and -")
        # The real one takes it, and makes it the reverse name of the address: everybody could find us by that.
        self.expect("." not in given["name"] and len(given["name"]) < 64, "name", "would tell who we are")
        tags = given.get("tags", [])
        is_well = all(isinstance(tag, str) and re.fullmatch("[A-Za-z0-9:_-]{1,255}", tag) for tag in tags)
        self.expect(is_well, "tags", "may have letters, digits, :, _ and -")
        region, size = self.one(self.sold["regions"], given, "region"), self.one(self.sold["sizes"], given, "size")
        image = self.one(self.images, given, "image")
        if size["slug"] not in region["sizes"]:
            raise Refused(*self.ERRORS["capacity"])
        for key in given.get("ssh_keys", []):
            if key not in self.KEYS:
                raise Refused(422, self.INVALID, f"{key} are invalid key identifiers for Droplet creation.")
        if len(self.machines) >= self.LIMIT:
            raise Refused(*self.ERRORS["quota"])
        self.tags.update(tags)
        eebt, *parts = given["name"].split("-", len(OURS) - 1)
        ours = {f"eebt:{what}": part for what, part in zip(OURS[1:], parts)} if eebt == "eebt" else {}
        ours.update({"eebt:fleet": tag.removeprefix("eebt:fleet:") for tag in tags if tag.startswith("eebt:fleet:")})
        droplet = self.make(given, region, size, image, ours)
        links = {"actions": [{"id": droplet.id * 10, "rel": "create", "href": f"{request.url}/{droplet.id}/actions"}]}
        return 202, {"droplet": self.view(droplet), "links": links}

    def delete(self, request):
        del self.machines[self.find(request).id]
        return 204, None

    def view(self, droplet):
        # The private address first: who takes the first takes the wrong one.
        v4 = [{"ip_address": droplet.address.replace("198.51.100", "10.135.0"), "netmask": "255.255.0.0", "type": "private"},
              {"ip_address": droplet.address, "netmask": "255.255.255.0", "type": "public"}]
        status, size = self.status(droplet), droplet.kind
        return {"id": droplet.id, "name": droplet.name, "status": status, "created_at": droplet.created, "image": droplet.image,
                "size": size, "size_slug": size["slug"], "memory": size["memory"], "vcpus": size["vcpus"],
                "disk": size["disk"], "region": droplet.region, "tags": droplet.given.get("tags", []), "features": [],
                "networks": {"v4": [] if status == "new" else v4, "v6": []}, "locked": status == "new"}

    def around(self, request, page, per_page, total):
        if page * per_page >= total:
            return {"links": {}, "meta": {"total": total}}
        following = urlencode({**request.query, "page": page + 1, "per_page": per_page})
        return {"links": {"pages": {"next": f"{request.url}?{following}"}}, "meta": {"total": total}}

    def error(self, refused):
        message = f"{refused.field} {refused.message}" if refused.field else refused.message
        return refused.status, {"id": refused.code, "message": message, "request_id": "4d9d8375-3c56-4925-a3e7-eb137fed17e9"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together

    def answer(self):
        data = self.rfile.read(int(self.headers["Content-Length"] or 0))
        answer = cloud.answer(self.command, self.path, self.headers, data)
        if answer is None:  # as if a cable was pulled
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, body = answer
        self.send_response(status)
        data = b"" if body is None else json.dumps(body).encode()
        if data:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = answer


def end_with_the_test():
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    cloud = {"hetzner": Hetzner, "digitalocean": DigitalOcean}[sys.argv[1]]()
    threading.Thread(target=end_with_the_test, daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
