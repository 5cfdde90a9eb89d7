"""Valid and invalid parameters of each action."""

from typing import Any, Final

GOOD: Final[dict[str, list[dict[str, Any]]]] = {
    "ping": [{}],
    "launch_app": [
        {"package": "com.example.app"},
        {"package": "com.example.app", "activity": ".Main", "extras": {"a": [1, {"b": None}]}},
        {"package": "p" * 3700},
        {"package": "p", "activity": "a" * 3700},
    ],
    "stop_app": [{"package": "com.example.app"}, {"package": "p" * 3700}],
    "ring": [{"duration_seconds": 5}, {"duration_seconds": 120}],
    "message": [{"title": "Café ✓", "body": "line\nline"}, {"title": "t" * 3700, "body": ""}],
    "lock": [{}],
    "reboot": [{}],
    "wipe": [{}],
}
BAD: Final[dict[str, list[dict[str, Any]]]] = {
    "ping": [{"x": 1}],
    "launch_app": [
        {}, {"package": ""}, {"package": 1}, {"package": None}, {"package": "a", "extras": []},
        {"package": "a", "flags": 1}, {"package": "a\x00"}, {"package": "a", "extras": {"n": 2**63}},
        {"package": "a", "extras": {"n": -(2**63) - 1}},
    ],
    "stop_app": [{}, {"package": ""}, {"package": "a", "activity": "b"}],
    "ring": [
        {}, {"duration_seconds": 4}, {"duration_seconds": 121}, {"duration_seconds": "5"}, {"duration_seconds": 5.5},
        {"duration_seconds": True},
    ],
    "message": [{}, {"title": "t"}, {"body": "b"}, {"title": "t", "body": 1}, {"title": "t\x00", "body": "b"}],
    "lock": [{"pin": "1234"}],
    "reboot": [{"now": True}],
    "wipe": [{"factory": True}],
}  # fmt: skip
