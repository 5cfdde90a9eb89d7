"""Rules for migrations on tables in use: no lock for long, and no change that breaks the version before.

A worker of the version before continues to read and write while the migration runs, and until it is restarted.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

CONTRACT: Final = "contract"
"""Part of the name of a migration that drops what no running version uses any more."""

ALLOWED: Final[Mapping[str, tuple[str, str]]] = {
    "0004_seal_the_audit": (
        r"^THIS OPERATION CANNOT BE WRITTEN AS SQL$",
        "not atomic: it seals in batches. It locks the audit's table for two moments, while no transaction writes",
    ),
    "0006_audit_by_links": (r"^DO .* SET SEARCH_PATH = ", "it sets the search path of functions, and touches no table"),
    "0007_guard_the_audit_marks": (r"^DO .* SET SEARCH_PATH = ", "as 0006"),
    "0008_audit_addresses": (r"^DO .* SET SEARCH_PATH = ", "as 0006"),
    "0009_audit_summary": (r"^DO .* SET SEARCH_PATH = ", "as 0006"),
}
"""The exceptions that migrations may have, each with its reason."""

_ADD: Final = r"\bADD (COLUMN )?(?!COLUMN |CONSTRAINT |CHECK |UNIQUE |PRIMARY |FOREIGN |EXCLUDE )"
_ALTER: Final = r"\bALTER (COLUMN )?(?!COLUMN )\S+ "
_RULES: Final = (
    (r"CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)", "it blocks all writes while it is built: use AddIndexConcurrently"),
    (r"DROP INDEX (?!CONCURRENTLY)", "it blocks all reads meanwhile: use RemoveIndexConcurrently"),
    (r"REINDEX (?!.*CONCURRENTLY)|VACUUM FULL|CLUSTER", "it rewrites the table under an exclusive lock"),
    (rf"{_ADD}(?!.* DEFAULT ).* NOT NULL", "the version before does not fill it: use null or db_default"),
    (rf"{_ADD}.*( GENERATED |SERIAL| DEFAULT .*(RANDOM|UUID|CLOCK_TIMESTAMP|NEXTVAL))", "it rewrites the table"),
    (rf"{_ADD}.* REFERENCES ", "it locks two tables: use db_constraint=False, then add a constraint NOT VALID"),
    (rf"{_ALTER}DROP DEFAULT", "the version before does not fill it: use db_default instead of default"),
    (rf"{_ALTER}(SET DATA )?TYPE ", "it rewrites the table: add another column, fill it, then use it"),
    (rf"{_ALTER}SET NOT NULL", "it reads the whole table under its lock: first add a CHECK NOT VALID"),
    (r"ADD CONSTRAINT .* (CHECK|FOREIGN KEY) (?!.* NOT VALID)", "it reads the whole table: use AddConstraintNotValid"),
    (r"ADD CONSTRAINT .* (UNIQUE|PRIMARY KEY|EXCLUDE)(?!.* USING INDEX )", "it builds an index: first build the index"),
    (r"ADD (CHECK|UNIQUE|PRIMARY KEY|FOREIGN KEY|EXCLUDE)\b", "it reads the whole table: add it by name, NOT VALID"),
    (r"\bRENAME (?!CONSTRAINT )", "the version before uses the old name: add a copy, fill it, drop the old one later"),
    (r"NOT VALID,.* VALIDATE CONSTRAINT ", "the lock of ALTER TABLE is kept meanwhile: do it in the next migration"),
    (r"SET (UNLOGGED|LOGGED|TABLESPACE|ACCESS METHOD)\b", "it rewrites the table"),
    (r"^LOCK\b", "it delays all work on the table until the transaction ends"),
    (r"^TRUNCATE\b", "it waits for all transactions, and deletes rows of the version before"),
    (r"^DO\b", "its effect cannot be read here: write the statements"),
    (r"^THIS OPERATION CANNOT BE WRITTEN AS SQL", "its effect cannot be read here: give the reason in ALLOWED"),
)  # fmt: skip
_DROPS: Final = r"^DROP TABLE |^ALTER TABLE .*\bDROP (?!CONSTRAINT |DEFAULT|NOT NULL|EXPRESSION|IDENTITY)"
_WRITES: Final = r"^(UPDATE|DELETE FROM|MERGE)\b|^(INSERT INTO|WITH)\b.*\bSELECT\b|^WITH\b.*\b(UPDATE|DELETE|INSERT)\b"
_VALIDATES: Final = r"^ALTER TABLE .*\bVALIDATE CONSTRAINT "
_BODY: Final = r"(CREATE (?:OR REPLACE )?(?:FUNCTION|PROCEDURE)\b[^;$]*?)\$(\w*)\$.*?\$\2\$"


def faults(name: str, statements: str, *, atomic: bool) -> list[str]:
    """Return what is wrong with the SQL of a migration, as sentences; at most one for each statement."""
    found = [statement for statement in _split(statements) if not _is_allowed(name, statement)]
    created = {table for statement in found if (table := _created(statement))}
    in_use = [statement for statement in found if _table(statement) not in created]
    held = [statement for statement in in_use if statement.startswith("ALTER TABLE")] if atomic else []
    wrong = ((statement, _fault(statement, name, atomic=atomic, held=held)) for statement in in_use)
    return [f"{statement}: {why}" for statement, why in wrong if why]


def _fault(statement: str, name: str, *, atomic: bool, held: list[str]) -> str | None:
    """Return what is wrong with one statement; `held` are the statements whose locks the transaction keeps."""
    for rule, why in _RULES:
        if re.search(rule, statement):
            return why
    if CONTRACT not in name and re.search(_DROPS, statement):
        return f"the version before may use it: in a later migration, named {CONTRACT}"
    if atomic and re.search(_WRITES, statement):
        return "its locks are kept until the migration ends: in batches, with atomic = False"
    if re.search(_VALIDATES, statement) and [other for other in held if other != statement]:
        return "the lock of ALTER TABLE is kept meanwhile: do it in the next migration"
    return None


def _is_allowed(name: str, statement: str) -> bool:
    return name in ALLOWED and re.search(ALLOWED[name][0], statement) is not None


def _split(statements: str) -> Iterator[str]:
    """Yield the statements in capitals, without comments, quotes, and the bodies of functions (but not of DO)."""
    text = re.sub(r"^\s*--(?! THIS OPERATION).*$", "", statements, flags=re.MULTILINE)
    text = re.sub(_BODY, r"\1", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"\$(\w*)\$.*?\$\1\$", lambda body: body[0].replace(";", " "), text, flags=re.DOTALL)
    for statement in re.split(r";|(?<=AS SQL)\n", text):
        if words := statement.replace('"', "").split():
            yield " ".join(words).upper().removeprefix("-- ")


def _created(statement: str) -> str | None:
    found = re.match(r"CREATE (?:UNLOGGED )?TABLE (?:IF NOT EXISTS )?(\w+)", statement)
    return found and found[1]


def _table(statement: str) -> str | None:
    pattern = r"^(?:ALTER TABLE (?:IF EXISTS )?(?:ONLY )?|CREATE .*INDEX .* ON |DROP TABLE |UPDATE |INSERT INTO )(\w+)"
    found = re.search(pattern, statement)
    return found and found[1]
