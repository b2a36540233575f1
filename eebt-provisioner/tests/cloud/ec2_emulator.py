"""EC2 as far as `eebt` uses it: moto, and what moto lacks for being trusted with the question "does anything leak?".

Adds: ClientToken (same answer again, IdempotentParameterMismatch, IdempotentInstanceTerminated), Debian's images, spot
prices that differ, lists that lag behind, and faults at any call. Listens on a free port of 127.0.0.1 and prints it.

Besides EC2 it answers, for the tests alone:
  POST /_test/faults  {"action", "skip", "times", "fault"}   the next calls of this action, after `skip` of them
  POST /_test/lag     {"calls"}                 new instances are missing from this many lists each
  POST /_test/interrupt  {"id"}                 the cloud takes a spot instance back
  POST /_test/vanish  {"id"}                    it ended so long ago that EC2 knows it no more
  POST /_test/ipv6    {"region"}                its subnets have IPv6 addresses from now on
  POST /_test/quota   {"processors"}            so many virtual processors the account may have at once
  POST /_test/count   how many instances are alive, and how many calls there were
  GET  /_test/state   instances, security groups and the calls so far

With EC2_GUEST, a command that boots guests (`tests/guest/guest run ...`), it gives that each machine's name, address and user-data,
and addresses are those of EC2_ADDRESSES, with commas between. A machine has terminated when its guest has ended, and the other way round.

Faults: "lost" (done, and the answer is lost), "cut" (not done, no answer), "throttle", "capacity", "quota", "denied", "down".
"""

import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from base64 import b64decode
from collections import Counter
from datetime import datetime
from urllib.parse import parse_qs

from faults import Faults
from moto.ec2.models import ec2_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

ACCOUNT = "123456789012"
DEBIAN = "136693071363"
ERRORS = {
    "throttle": (503, "RequestLimitExceeded", "Request limit exceeded."),
    "capacity": (500, "InsufficientInstanceCapacity", "There is no capacity for what you asked."),
    "quota": (400, "MaxSpotInstanceCountExceeded", "Max spot instance count exceeded"),
    "denied": (403, "UnauthorizedOperation", "You are not authorized. Encoded authorization failure message: AbCdEf"),
    "down": (500, "InternalError", "An internal error has occurred"),
}


def error(status, code, message):
    body = (
        '<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>%s</Code><Message>%s</Message></Error>'
        "</Errors><RequestID>0</RequestID></Response>" % (code, message)
    )
    return status, body.encode()


class Emulator:
    def __init__(self):
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.lock = threading.RLock()
        self.tokens = {}  # (region, token) -> (parameters, status, body, instance ids)
        self.faults = Faults()
        self.processors = 32.0  # the quota
        self.lag = 0
        self.hidden = {}  # instance id -> lists it is still missing from
        self.calls = []
        self.regions = set()
        self.addresses = [a for a in os.environ.get("EC2_ADDRESSES", "").split(",") if a]
        self.guests = {}  # instance id -> process

    def __call__(self, environ, start_response):
        length = int(environ.get("CONTENT_LENGTH") or 0)
        data = environ["wsgi.input"].read(length)
        with self.lock:
            path = environ["PATH_INFO"]
            if path.startswith("/_test/"):
                answer = self.test(path[len("/_test/"):], json.loads(data or b"{}"))
                status, body = 200, json.dumps(answer).encode()
            else:
                answer = self.serve(environ, data)
                if answer is None:  # as if a cable was pulled
                    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                    answer = 500, b""
                status, body = answer
        start_response("%d X" % status, [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
        return [body]

    def serve(self, environ, data):
        if environ.get("HTTP_X_AMZ_TARGET", "").endswith(".GetServiceQuota"):
            return self.quota(environ)
        form = {name: values[0] for name, values in parse_qs(data.decode(), keep_blank_values=True).items()}
        action = form.get("Action", "")
        scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        region = scope.group(1) if scope else "us-east-1"
        self.calls.append((action, region))
        self.prepare(region)
        fault = self.faults.of(action)
        if fault == "cut":
            return None
        if fault in ERRORS:
            return error(*ERRORS[fault])
        refusal = self.refusal(action, region, form)
        if refusal:
            return refusal
        answer = self.idempotent(region, form, environ, data) if form.get("ClientToken") else self.ask(environ, data)
        if action == "TerminateInstances" and answer[0] == 200:
            for name, value in form.items():
                if name.startswith("InstanceId.") and value in self.guests:
                    self.guests[value].terminate()
        if action == "DescribeInstances":
            answer = self.lagging(answer)
        if action == "DescribeSpotPriceHistory":
            answer = self.priced(answer)
        return None if fault == "lost" else answer

    def quota(self, environ):
        action = "servicequotas:GetServiceQuota"
        self.calls.append((action, ""))
        if self.faults.of(action) == "denied":
            return 400, b'{"__type": "AccessDeniedException", "Message": "You are not authorized."}'
        return 200, json.dumps({"Quota": {"Value": self.processors}}).encode()

    def ask(self, environ, data):
        seen = {}
        environ = dict(environ, **{"wsgi.input": io.BytesIO(data), "CONTENT_LENGTH": str(len(data))})
        body = b"".join(self.moto(environ, lambda status, headers, _=None: seen.update(status=int(status.split()[0]))))
        return seen["status"], body

    def refusal(self, action, region, form):
        """What EC2 refuses and moto does not."""
        if action == "DeleteSecurityGroup":
            alive = [i for i in self.instances(region) if i.state not in ("terminated", "shutting-down")]
            if any(group.id == form["GroupId"] for i in alive for group in i.security_groups):
                return error(400, "DependencyViolation", "The security group has a dependent object.")
        ids = [value for name, value in form.items() if name.startswith("InstanceId.")]
        if action == "TerminateInstances" and any(self.hidden.get(id, 0) > 0 for id in ids):
            return error(400, "InvalidInstanceID.NotFound", "The instance ID does not exist")
        if action == "RunInstances" and form.get("KeyName", "operator") != "operator":
            return error(400, "InvalidKeyPair.NotFound", "The key pair does not exist")
        return None

    def idempotent(self, region, form, environ, data):
        key = region, form["ClientToken"]
        if key in self.tokens:
            known, status, body, ids = self.tokens[key]
            if known != form:
                return error(400, "IdempotentParameterMismatch", "The parameters differ from those of the first call.")
            states = [i.state for i in self.instances(region) if i.id in ids]
            if any(state in ("terminated", "shutting-down") for state in states):
                return error(400, "IdempotentInstanceTerminated", "The instances have been terminated.")
            return status, body
        status, body = self.ask(environ, data)
        if status == 200:
            ids = re.findall(r"<instanceId>(.*?)</instanceId>", body.decode())
            self.tokens[key] = form, status, body, ids
            for instance in self.instances(region):
                if instance.id in ids:
                    self.boot(region, instance)
            self.hidden.update({id: self.lag for id in ids})
        return status, body

    def boot(self, region, instance):
        if not os.environ.get("EC2_GUEST"):
            return
        address = self.addresses.pop(0)
        instance.nics[0].public_ip = address
        command = [*shlex.split(os.environ["EC2_GUEST"]), instance.id, address]
        guest = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self.guests[instance.id] = guest

        def live():
            guest.communicate(b64decode(str(instance.user_data)))
            with self.lock:
                ec2_backends[ACCOUNT][region].terminate_instances([instance.id])

        threading.Thread(target=live, daemon=True).start()

    def lagging(self, answer):
        status, body = answer
        text = body.decode()
        for id, lists in list(self.hidden.items()):
            if lists > 0 and id in text:
                self.hidden[id] -= 1
                item = r"<item>\s*<reservationId>(?:(?!<reservationId>).)*?<instanceId>%s</instanceId>.*?" % id
                text = re.sub(item + r"</instancesSet>.*?</item>", "", text, flags=re.S)
        return status, text.encode()

    @staticmethod
    def priced(answer):
        """Prices of some sense: by type, and a little by zone."""
        status, body = answer

        def price(found):
            kind = re.search(r"<instanceType>(.*?)</instanceType>", found.group(0))
            zone = re.search(r"<availabilityZone>.*?(.)</availabilityZone>", found.group(0))
            usd = {"nano": 0.0016, "micro": 0.0031}.get(kind.group(1).split(".")[-1], 0.02)
            usd += (ord(zone.group(1)) - ord("a")) * 0.0001
            return re.sub(r"<spotPrice>.*?</spotPrice>", "<spotPrice>%.6f</spotPrice>" % usd, found.group(0))

        return status, re.sub(r"<item>.*?</item>", price, body.decode(), flags=re.S).encode()

    def instances(self, region):
        reservations = ec2_backends[ACCOUNT][region].all_reservations()
        return [instance for reservation in reservations for instance in reservation.instances]

    def prepare(self, region):
        if region in self.regions:
            return
        self.regions.add(region)
        backend = ec2_backends[ACCOUNT][region]
        for name, arch, date in [
            ("debian-13-amd64-20260101-1", "x86_64", datetime(2026, 1, 1)),
            ("debian-13-amd64-20260901-1", "x86_64", datetime(2026, 9, 1)),
            ("debian-13-arm64-20260901-1", "arm64", datetime(2026, 9, 1)),
        ]:
            image = backend.register_image(name=name, description=name)
            image.owner_id, image.architecture, image.creation_date = DEBIAN, arch, date

    def test(self, what, given):
        if what == "faults":
            self.faults.add(**given)
        elif what == "clear":
            self.faults.clear()
            self.calls.clear()
            self.hidden.clear()
            self.lag = 0
        elif what == "lag":
            self.lag = given["calls"]
        elif what == "vanish":
            for region in self.regions:
                reservations = ec2_backends[ACCOUNT][region].reservations
                for reservation in reservations.values():
                    reservation.instances = [i for i in reservation.instances if i.id != given["id"]]
        elif what == "ipv6":
            backend = ec2_backends[ACCOUNT][given["region"]]
            for n, subnet in enumerate(backend.describe_subnets()):
                backend.associate_subnet_cidr_block(subnet.id, "2001:db8:%x::/64" % n)
        elif what == "quota":
            self.processors = given["processors"]
        elif what == "interrupt":
            for region in self.regions:
                for instance in self.instances(region):
                    if instance.id == given["id"]:
                        ec2_backends[ACCOUNT][region].terminate_instances([instance.id])
                        instance.state_reason.message = "Server.SpotInstanceTermination: Spot instance termination"
        elif what == "count":
            alive = [i for region in self.regions for i in self.instances(region) if i.state not in ("terminated", "shutting-down")]
            return {"alive": len(alive), "calls": len(self.calls)}
        elif what != "state":
            return {"error": "no such test call"}
        machines = []
        groups = []
        for region in sorted(self.regions):
            for instance in self.instances(region):
                tags = {tag["key"]: tag["value"] for tag in instance.get_tags()}
                user_data = b64decode(str(instance.user_data or "")).decode()
                machines.append({"id": instance.id, "region": region, "state": instance.state, "tags": tags,
                                 "user_data": user_data, "kind": instance.instance_type,
                                 "guest": self.guests[instance.id].poll() if instance.id in self.guests else None,
                                 "ipv6": len(instance.nics[0].ipv6_addresses), "market": instance.lifecycle, "ssh_keys": [instance.key_name],
                                 "tokens": instance.metadata_options.http_tokens,
                                 "hops": instance.metadata_options.http_put_response_hop_limit,
                                 "shutdown": instance.instance_initiated_shutdown_behavior})
            for group in ec2_backends[ACCOUNT][region].describe_security_groups():
                if group.name.startswith("eebt-"):
                    ports = [int(rule.from_port) for rule in group.ingress_rules]
                    groups.append({"name": group.name, "region": region, "ports": ports})
        return {"machines": machines, "groups": groups, "faulted": self.faults.met,
                "calls": Counter("%s" % a for a, _ in self.calls)}


def end(emulator):
    """With whoever started it, and all guests with it."""
    with emulator.lock:
        for guest in emulator.guests.values():
            guest.terminate()
        for guest in emulator.guests.values():
            try:
                guest.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(guest.pid, signal.SIGKILL)
        os._exit(0)


def end_with_the_test(emulator):
    sys.stdin.read()
    end(emulator)


if __name__ == "__main__":
    emulator = Emulator()
    threading.Thread(target=end_with_the_test, args=[emulator], daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: end(emulator))
    server = make_server("127.0.0.1", 0, emulator, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()
