"""Aliases of devices. No two devices may have aliases that differ only in upper and lower case."""

from uuid import UUID

from devices.identity import comparison_keys
from devices.models import Device
from nexmdm.common import database
from nexmdm.common.domain_error import DomainError
from nexmdm.common.identity import comparison_key


class AliasTaken(DomainError):
    detail = "Another device has this alias. Choose a different alias."

    def __init__(self, *, by_revoked: bool = False, by_retired: bool = False) -> None:
        """`by_revoked`: the device that has the alias is revoked. `by_retired`: this device is retired."""
        revoked = "A revoked device has this alias. Choose a different alias, or change the alias of that device."
        retired = "A retired device still has this alias from an earlier version of NexMDM. Choose a different alias,"
        again = "or retire that device again: this frees the alias."
        super().__init__(f"{retired} {again}" if by_retired else revoked if by_revoked else "")


def claim(alias: str, device_id: UUID | None) -> None:
    """Ensure that no other device has this alias until the transaction ends. Raises AliasTaken."""
    if not _has_exactly(device_id, alias):
        database.advisory_lock("alias", comparison_key(alias))
        check(alias, device_id)


def check(alias: str, device_id: UUID | None) -> None:
    """Raise AliasTaken if another device has this alias now. This function does not wait for a lock.

    An earlier version may have given two devices the same alias. In this case, the alias belongs to the device that was
    enrolled first.
    """
    if _has_exactly(device_id, alias):
        return
    owner = comparison_keys.with_aliases([alias]).only("id", "revoked_at", "retired_at").first()
    if owner is not None and owner.id != device_id:
        raise AliasTaken(by_revoked=owner.revoked_at is not None, by_retired=owner.retired_at is not None)


def _has_exactly(device_id: UUID | None, alias: str) -> bool:
    return device_id is not None and Device.objects.filter(id=device_id, alias=alias).exists()


def give(device_id: UUID, alias: str | None) -> None:
    """Set the alias of a device, or delete the alias if it is None. Before a new alias is set, the caller must call
    claim().
    """
    Device.objects.filter(id=device_id).update(alias=alias)
    # Write the key in its own statement: a trigger deletes a key that stays the same while the alias changes.
    Device.objects.filter(id=device_id).update(alias_key=None if alias is None else comparison_key(alias))
