"""A model of push targets: the same rules again, in plain Python and for one caller at a time."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)


class Target(NamedTuple):
    """A push target without the time of its registration."""

    kind: str
    value: str


@dataclass(slots=True)
class OwnedTarget:
    """The server's expected knowledge of one device's push target."""

    target: Target | None = None
    registered_at: datetime | None = None
    dead_at: datetime | None = None
    revived_at: datetime | None = None

    @property
    def is_live(self) -> bool:
        """Return whether a push may go to it."""
        return self.target is not None and self.dead_at is None

    def forget(self) -> None:
        """Delete the target; the time of the last revival stays."""
        self.target = self.registered_at = self.dead_at = None


@dataclass(slots=True)
class Deaths:
    """The push targets that FCM called dead, and the times of the pushes that got this answer."""

    at: dict[Target, datetime] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    """The rules that have had an effect so far."""

    def record(self, target: Target, at: datetime, owned: list[OwnedTarget]) -> None:
        """Record that FCM called a target dead, unless the target is a FID that was registered after the push."""
        owners = [one for one in owned if one.target == target]
        if target.kind == "fid" and any(one.registered_at is not None and one.registered_at > at for one in owners):
            self.seen.add("registered after the push that FCM answered")
            return
        self.at.setdefault(target, at)
        for one in owners:
            one.dead_at = one.dead_at or at

    def is_written(
        self, owned: OwnedTarget, target: Target | None, registered_at: datetime | None, now: datetime
    ) -> bool:
        """Return whether a heartbeat with this target writes anything."""
        if target != owned.target:
            return True
        if target is None or registered_at is None:
            return False
        if owned.dead_at is None:
            return owned.registered_at is None or min(registered_at, now) > owned.registered_at + 10 * MINUTE
        return self._revives(owned, target, registered_at, now)

    def assign(self, owned: OwnedTarget, target: Target | None, registered_at: datetime | None, now: datetime) -> bool:
        """Give a device a target; return whether this changes pushing to the device."""
        is_same = target == owned.target
        if target is None:
            owned.forget()
            return not is_same
        registered_at = min(registered_at, now) if registered_at else None
        revives = self._revives(owned, target, registered_at, now)
        died_at = self.at.get(target) or (owned.dead_at if is_same else None)
        owned.registered_at = registered_at or (owned.registered_at if is_same else None)
        owned.target, owned.dead_at = target, None if revives else died_at
        self.seen |= {"revived"} if revives else {f"a dead {target.kind} stays dead"} if died_at else set()
        if revives:
            owned.revived_at = now
            self.at.pop(target, None)
        return revives or not is_same

    def _revives(self, owned: OwnedTarget, target: Target, registered_at: datetime | None, now: datetime) -> bool:
        died_at = self.at.get(target) or (owned.dead_at if target == owned.target else None)
        if target.kind != "fid" or registered_at is None or died_at is None or min(registered_at, now) <= died_at:
            return False
        if owned.revived_at is None or owned.revived_at <= now - HOUR:
            return True
        self.seen.add("revived within the last hour")
        return False
