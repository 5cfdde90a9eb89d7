"""What a migration may do to tables in use: hold no lock for long, and leave the code before it in working order.

A worker of the version before goes on reading and writing while the migration runs, and until it is restarted.
"""

import re
from collections.abc import Iterator
from typing import Final

CONTRACT: Final = "contract"
"""What the name of a migration says that drops what no running version uses any more."""

_RULES: Final = (
    (r"CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)", "nobody can write while it is built: use AddIndexConcurrently"),
    (r"DROP INDEX (?!CONCURRENTLY)", "nobody can read meanwhile: use RemoveIndexConcurrently"),
    (r"REINDEX (?!.*CONCURRENTLY)|VACUUM FULL|CLUSTER", "it rewrites under an exclusive lock"),
    (r"ADD COLUMN (?!.* DEFAULT ).* NOT NULL", "the version before does not fill it: null=True, or a db_default"),
    (r"ADD COLUMN .*( GENERATED |SERIAL| DEFAULT .*(RANDOM|UUID|CLOCK_TIMESTAMP|NEXTVAL))", "it rewrites the table"),
    (r"ADD COLUMN .* REFERENCES ", "it locks two tables: db_constraint=False, then a constraint NOT VALID"),
    (r"ALTER COLUMN \S+ DROP DEFAULT", "the version before does not fill it: db_default rather than default"),
    (r"ALTER COLUMN \S+ (SET DATA )?TYPE ", "it rewrites the table: add a column, fill it, change over"),
    (
        r"ALTER COLUMN \S+ SET NOT NULL",
        "it reads all of the table under its lock: a CHECK NOT VALID first",
    ),
    (r"ADD CONSTRAINT .* (CHECK|FOREIGN KEY) (?!.* NOT VALID)", "it reads all of the table: AddConstraintNotValid"),
    (r"ADD CONSTRAINT .* (UNIQUE|PRIMARY KEY|EXCLUDE)(?!.* USING INDEX )", "it builds an index: build it before"),
    (r"RENAME (COLUMN|TO) ", "the version before uses the old name: add, fill, change over, drop later"),
)
_DROPS: Final = r"DROP (TABLE|COLUMN) "
_DATA: Final = r"^(UPDATE|DELETE FROM|INSERT INTO .* SELECT) |THIS OPERATION CANNOT BE WRITTEN AS SQL"


def faults(name: str, statements: str, *, atomic: bool) -> list[str]:
    """Return what is wrong with the SQL of a migration, as sentences."""
    found = list(_split(statements))
    created = {table for statement in found if (table := _created(statement))}
    in_use = [statement for statement in found if _table(statement) not in created]
    wrong = [f"{statement}: {why}" for statement in in_use for rule, why in _RULES if re.search(rule, statement)]
    if CONTRACT not in name:
        why = f"the version before may use it: in a later migration, named {CONTRACT}"
        wrong += [f"{statement}: {why}" for statement in in_use if re.search(_DROPS, statement)]
    if atomic and any(statement.startswith("ALTER TABLE") for statement in in_use):
        why = "the lock of ALTER TABLE is held meanwhile: do it in the next migration"
        wrong += [f"{statement}: {why}" for statement in in_use if re.search(_DATA, statement)]
    return wrong


def _split(statements: str) -> Iterator[str]:
    """Yield the statements in capitals, without comments, quotes, and the bodies of functions."""
    text = re.sub(r"\$(\w*)\$.*?\$\1\$", "", statements, flags=re.DOTALL)
    text = re.sub(r"^--(?! THIS OPERATION).*$", "", text, flags=re.MULTILINE)
    for statement in re.split(r";|(?<=AS SQL)\n", text):
        if words := statement.replace('"', "").split():
            yield " ".join(words).upper().removeprefix("-- ")


def _created(statement: str) -> str | None:
    found = re.match(r"CREATE (?:UNLOGGED )?TABLE (?:IF NOT EXISTS )?(\w+)", statement)
    return found and found[1]


def _table(statement: str) -> str | None:
    found = re.search(r"^(?:ALTER TABLE (?:ONLY )?|CREATE .*INDEX .* ON |DROP TABLE )(\w+)", statement)
    return found and found[1]
