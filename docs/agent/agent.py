#!/usr/bin/env python3
"""A complete agent for NexMDM, with Python's standard library only. docs/agent.md explains its rules.

It is documentation that runs: `manage.py conformance -- python docs/agent/agent.py` drives it through the kit. On a
real phone, replace `perform` (the actions), `take_pushes` (the FCM SDK) and `State` (the Keystore).
"""

import contextlib
import hmac
import http.client
import json
import os
import random
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Json = dict[str, Any]

ACTIONS = {"ping", "launch_app", "stop_app", "ring", "message", "lock", "reboot", "wipe"}
SIGNED = ("request_id", "action", "params", "issued_at", "expires_at")
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1, 300
LONGEST_REFUSED_SECONDS = 3600
REMEMBER_SECONDS = 86_400
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Refused(Exception):
    """The server answered with problem details."""

    def __init__(self, status: int, code: str, retry_after: int | None) -> None:
        super().__init__(f"{status} {code}")
        self.status, self.code, self.retry_after = status, code, retry_after


class NoAnswer(OSError):
    """The answer is not the server's: for example the page of a captive portal."""


class FollowNoRedirect(urllib.request.HTTPRedirectHandler):
    """The server sends no redirects. A captive portal does, and it must not get the token."""

    def redirect_request(self, *_: Any) -> None:
        return None


class State(dict[str, Any]):
    """What must survive a restart, in one file that is replaced as a whole. A phone encrypts it by a Keystore key."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "agent.json"
        super().__init__(json.loads(self.path.read_text()) if self.path.exists() else {"reports": {}})

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(self, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)


def is_intact(token: str) -> bool:
    """Whether a token has its checksum: six base62 digits of the CRC32 of all that precedes."""
    number, digits = zlib.crc32(token[:-6].encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    return token[-6:] == digits


def sign(command_key: str, device_id: str, envelope: Json) -> str:
    """The signature that an envelope for this phone must have."""
    text = "\n".join(["NXC1", device_id, *(envelope[name] for name in SIGNED)])
    return hmac.new(command_key.encode(), text.encode(errors="surrogatepass"), "sha256").hexdigest()


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def spread(wait: float) -> float:
    """A random part of a wait, from half of it to all of it, so that phones do not return all together."""
    return wait * random.uniform(0.5, 1)


class Agent:
    def __init__(self) -> None:
        self.url, self.state = os.environ["PHONE_SERVER_URL"], State(Path(os.environ["PHONE_STATE_DIR"]))
        self.lock = threading.RLock()
        self.opener = urllib.request.build_opener(FollowNoRedirect)
        self.not_before: dict[str, float] = {}
        self.failures = self.refusals = 0
        self.interval = float(self.state.get("interval", 120))
        own_clock = time.time() + float(os.environ.get("PHONE_CLOCK_OFFSET_SECONDS", "0"))
        self.own_clock_ahead = own_clock - time.monotonic()
        self.ahead: float = self.own_clock_ahead + self.state.get("own_clock_behind", 0)

    # --- time: the server's, from its last answer on, by a clock that cannot be set

    def now(self) -> float:
        return time.monotonic() + self.ahead

    def learn_time(self, server_time: str) -> None:
        self.ahead = seconds(server_time) - time.monotonic()
        with self.lock:
            self.state["own_clock_behind"] = self.ahead - self.own_clock_ahead

    # --- requests

    def call(self, path: str, body: Json, bearer: str) -> Json:
        """Send one request. Raises Refused, or OSError and HTTPException if no answer of the server came."""
        wait = max(self.not_before.get(path, 0), self.not_before.get("", 0)) - time.monotonic()
        if wait > 0:
            raise Refused(429, "not_yet", max(1, round(wait)))
        headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            return self.exchange(path, request)
        except ValueError as error:
            raise NoAnswer("an answer, but no JSON") from error

    def exchange(self, path: str, request: urllib.request.Request) -> Json:
        try:
            with self.opener.open(request, timeout=30) as response:
                answer: Json = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            raise self.refusal(path, error) from error

    def refusal(self, path: str, error: urllib.error.HTTPError) -> Refused:
        """Read a refusal. A 429 closes its own call until Retry-After, a 503 closes all of them. Raises NoAnswer."""
        if error.headers.get_content_type() != "application/problem+json":
            raise NoAnswer(f"{error.code}, but no problem details")
        code = str(json.load(error).get("code", ""))
        retry_after = int(error.headers.get("Retry-After") or 0)
        if retry_after:
            pause = retry_after + random.uniform(0, 1 + retry_after / 10)
            self.not_before["" if error.code == 503 else path] = time.monotonic() + pause
        return Refused(error.code, code, retry_after or None)

    def pairs(self) -> list[Json]:
        """The credentials: the newest first. There are two from a rotation until the new token's first 200."""
        return [pair for pair in (self.state.get("next"), self.state["current"]) if pair]

    def say(self, path: str, body: Json) -> Json:
        """Send a request as this device."""
        pair = self.pairs()[0]
        try:
            answer = self.call(path, body, pair["device_token"])
        except Refused as refused:
            if refused.status != 401 or pair is not self.state.get("next"):
                raise
            self.state["next"] = None
            return self.say(path, body)
        with self.lock:
            if pair is self.state.get("next"):
                self.state["current"], self.state["next"] = pair, None
        return answer

    # --- register, heartbeat, rotate

    def register(self) -> None:
        token = os.environ["PHONE_ENROLLMENT_TOKEN"]
        if not is_intact(token):
            sys.exit("The enrollment token is damaged; scan it again.")
        body = {"hardware_id": os.environ["PHONE_HARDWARE_ID"], "agent_version": "1.0", **push_fields()}
        while "current" not in self.state:
            try:
                answer = self.call("/v1/register", body, token)
            except Refused as refused:
                if refused.status in (401, 403, 409, 413, 422):
                    sys.exit(f"Not registered: {refused}. A person must help.")
                self.pause(refused)
            except (OSError, http.client.HTTPException):
                self.pause(None)
            else:
                self.failures = 0
                self.learn_time(answer["server_time"])
                self.interval = self.state["interval"] = answer["heartbeat_interval_seconds"]
                self.state |= {"device_id": answer["device_id"], "current": self.pair_in(answer)}
                self.state.save()

    def pair_in(self, answer: Json) -> Json:
        return {"device_token": answer["device_token"], "command_key": answer["command_key"], "since": self.now()}

    def rotate_if_due(self) -> None:
        """Ask for a new pair with the old token. It is stored before it is used."""
        after = float(os.environ.get("PHONE_ROTATE_AFTER_SECONDS", "2592000"))
        if self.state.get("next") or self.now() - self.state["current"]["since"] < after:
            return
        answer = self.call("/v1/token/rotate", {}, self.state["current"]["device_token"])
        with self.lock:
            self.state["next"] = self.pair_in(answer)
            self.state.save()

    def heartbeat(self) -> None:
        """Send a heartbeat, carry out what it offers, report, and plan the next one."""
        answer = self.say("/v1/heartbeat", {"status": {"battery_pct": 90}, **push_fields()})
        self.learn_time(answer["server_time"])
        self.failures = self.refusals = 0
        took = [self.take(envelope, "heartbeat") for envelope in answer["commands"]]
        self.forget_old_reports()
        with contextlib.suppress(Refused, OSError, http.client.HTTPException):
            self.send_reports()
        self.wait(0 if answer["has_more"] and any(took) else answer["next_heartbeat_seconds"])

    def live(self) -> None:
        """Register once, then send heartbeats for ever."""
        if "current" not in self.state:
            self.register()
        self.finish_interrupted()
        threading.Thread(target=take_pushes, args=(self,), daemon=True).start()
        while True:
            try:
                with contextlib.suppress(Refused, OSError, http.client.HTTPException):
                    self.rotate_if_due()
                self.heartbeat()
            except Refused as refused:
                self.pause(refused)
            except (OSError, http.client.HTTPException):
                self.pause(None)

    def pause(self, refused: Refused | None) -> None:
        """Wait after a failure: as long as Retry-After says; long after a 401 or 403; else 1 s, 2 s, 4 s …"""
        if refused and refused.retry_after:
            self.wait(refused.retry_after)
        elif refused and refused.status in (401, 403):
            self.refusals += 1
            self.wait(spread(min(LONGEST_REFUSED_SECONDS, self.interval * 2**self.refusals)))
        else:
            self.failures += 1
            self.wait(spread(min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** (self.failures - 1))))

    def wait(self, wait: float) -> None:
        closed = max(self.not_before.get("/v1/heartbeat", 0), self.not_before.get("", 0)) - time.monotonic()
        time.sleep(max(wait, closed, 0))

    # --- commands

    def trusts(self, envelope: Json) -> bool:
        """Whether an envelope has six strings, and a signature by one of the command keys."""
        if not all(isinstance(envelope.get(name), str) for name in (*SIGNED, "signature")):
            return False
        good = [sign(pair["command_key"], self.state["device_id"], envelope) for pair in self.pairs()]
        sent = envelope["signature"].encode(errors="surrogatepass")
        return any(hmac.compare_digest(one.encode(), sent) for one in good)

    def take(self, envelope: Json, via: str) -> bool:
        """Carry out a command once. A repeat gets the last report again. A bad signature gets nothing, and False."""
        with self.lock:
            if not self.trusts(envelope):
                return False
            request_id = envelope["request_id"]
            if known := self.state["reports"].get(request_id):
                known["unsent"] = True
                return True
            report = {"request_id": request_id, "status": "running", "via": via}
            record = {"report": report, "action": envelope["action"], "expires_at": seconds(envelope["expires_at"])}
            self.state["reports"][request_id] = record
            self.state.save()
        done = self.outcome(envelope)
        with self.lock:
            finished = datetime.fromtimestamp(self.now(), UTC).isoformat(timespec="seconds")
            record["report"] = {**report, **done, "finished_at": finished.replace("+00:00", "Z")}
            record["unsent"] = True
            self.state.save()
        return True

    def outcome(self, envelope: Json) -> Json:
        if self.now() >= seconds(envelope["expires_at"]):
            return {"status": "failed", "message": "expired"}
        if envelope["action"] not in ACTIONS:
            return {"status": "failed", "message": "unknown action"}
        return perform(envelope["request_id"], envelope["action"], json.loads(envelope["params"]))

    def finish_interrupted(self) -> None:
        """After a restart: an action that was begun has failed, unless it was the restart itself."""
        for record in self.state["reports"].values():
            if record["report"]["status"] == "running":
                status = "succeeded" if record["action"] == "reboot" else "failed"
                record["report"] |= {"status": status, "message": "the agent was restarted"}
                record["unsent"] = True

    def send_reports(self) -> None:
        """Send each report that the server has not answered yet. Raises Refused, OSError and HTTPException."""
        with self.lock:
            unsent = [(one, one["report"]) for one in self.state["reports"].values() if one.get("unsent")]
        for record, report in unsent:
            try:
                self.say("/v1/action-result", report)
            except Refused as refused:
                if refused.code != "unknown_request" and refused.status not in (413, 422):
                    raise
            with self.lock:
                record["unsent"] = record["report"] is not report
                self.state.save()

    def forget_old_reports(self) -> None:
        """A request id is kept until a day after its `expires_at`: until then a repeat may come."""
        with self.lock:
            limit = self.now() - REMEMBER_SECONDS
            kept = {key: one for key, one in self.state["reports"].items() if one["expires_at"] > limit}
            self.state["reports"] = kept
            self.state.save()


# --- what a real phone has other code for


def perform(request_id: str, action: str, params: Json) -> Json:
    """Carry out an action. This phone has no hardware: it writes down what it would do."""
    with Path(os.environ["PHONE_ACTIONS_FILE"]).open("a") as file:
        file.write(f"{request_id} {action}\n")
    return {"status": "succeeded", "message": f"{action} with {len(params)} parameters"}


def push_fields() -> Json:
    """Where pushes reach this phone. `push_token` is for servers that do not know `push_target` yet."""
    target = json.loads(os.environ["PHONE_PUSH_TARGET"])
    return {"push_target": target} | ({"push_token": target["value"]} if target["kind"] == "token" else {})


def take_pushes(agent: Agent) -> None:
    """Take pushes from the kit's stand-in, as `onMessageReceived` does from the FCM SDK."""
    while True:
        try:
            with urllib.request.urlopen(os.environ["PHONE_PUSH_URL"], timeout=60) as response:
                message = json.load(response) if response.status == 200 else None
            if message:
                agent.take(message["data"], "push")
                agent.send_reports()
        except (OSError, http.client.HTTPException, Refused):
            time.sleep(1)


if __name__ == "__main__":
    Agent().live()
