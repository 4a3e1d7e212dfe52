#!/usr/bin/env python3
"""Makes the lake's five tables known to Athena: prints their DDL, or registers them in the Glue Data Catalog.

    python catalog.py                prints the DDL; Athena's editor takes one statement at a time
    python catalog.py --register     creates or updates the tables in Glue; a second run changes nothing

Names, types and partitions come from etl.py, and the address from [LAKE] OUTPUT. Athena computes the partitions itself
(partition projection), so you need not run this program again for a new month or day. If a query does not name a year,
Athena looks for every partition that could exist: write WHERE year = 2018 wherever you can.

Songs partitioned by year and artist (SONGS_PARTITION_BY) are the exception. Athena cannot compute the artists, so Glue
lists the directories of the artists: run --register after each run of the job that may bring a new artist.

--register changes only tables that this program created. If another table or view has the same name, it changes
nothing.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import etl
from etl import JobError, Table, UsageError

try:
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError as error:
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`, then try again")

log = logging.getLogger("catalog")

# The partitions that Athena looks for. etl.py accepts no line with a year outside.
PLAYED = {"year": (2000, 2099), "month": (1, 12), "day": (1, 31)}
RANGES = {"songplays": PLAYED, "time": PLAYED, "songs": {"year": (0, 2099)}}  # year 0: unknown

MARK = {"made_by": "sparkify catalog.py"}  # in each table that this program makes
PLACEHOLDER = "s3://BUCKET/PREFIX"
PARQUET = {
    "InputFormat": "org.apache.hadoop.hive.ql.io.parquet.MapredParquetInputFormat",
    "OutputFormat": "org.apache.hadoop.hive.ql.io.parquet.MapredParquetOutputFormat",
    "SerdeInfo": {"SerializationLibrary": "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe"},
}
CREATED_AT_ONCE, DELETED_AT_ONCE = 100, 25  # partitions in one call to Glue


# ------------------------------------------------------------------------------------------------------------------
# The tables as Athena sees them
# ------------------------------------------------------------------------------------------------------------------


def lake(settings: etl.Settings) -> str:
    """The address of OUTPUT as Athena writes it: s3a://lake/tables/ -> s3://lake/tables"""
    if not etl.on_s3(settings.output):
        raise UsageError(f"[LAKE] OUTPUT = {settings.output!r}: Athena reads only S3; give --output s3://BUCKET/PREFIX")
    if settings.endpoint:
        raise UsageError(f"[LAKE] ENDPOINT = {settings.endpoint!r}: Athena reads only Amazon S3; leave ENDPOINT blank")
    return "s3://" + etl.s3_path(settings.output)


def columns(table: Table) -> tuple[dict[str, str], dict[str, str]]:
    """name -> type of the columns in the files, and of the columns in the directories' names."""
    types = etl.field_types(table.columns)
    stored = {name: kind for name, kind in types.items() if name not in table.partitions}
    return stored, {name: types[name] for name in table.partitions}


def properties(table: Table) -> dict[str, str]:
    """How Athena finds the partitions. Not `injected`: then each query on songs would have to name its artists."""
    ranges = RANGES.get(table.name, {})
    found = {"classification": "parquet", **MARK}
    if not table.partitions:
        return found
    if not set(table.partitions) <= set(ranges):
        return {**found, "projection.enabled": "false"}
    for column in table.partitions:
        found[f"projection.{column}.type"] = "integer"
        found[f"projection.{column}.range"] = "{},{}".format(*ranges[column])
    return {**found, "projection.enabled": "true"}


def is_listed(table: Table) -> bool:
    """Whether the catalogue has to list the table's partitions."""
    return properties(table).get("projection.enabled") == "false"


def statements(tables: list[Table], database: str, address: str) -> list[str]:
    """The DDL for Athena, in the order to run it."""
    repairs = [f"MSCK REPAIR TABLE `{database}`.`{table.name}`" for table in tables if is_listed(table)]
    creates = [ddl(table, database, address) for table in tables]
    return [f"CREATE DATABASE IF NOT EXISTS `{database}`", *creates, *repairs]


def ddl(table: Table, database: str, address: str) -> str:
    """The statement that creates the table. Without IF NOT EXISTS, which would pass over another table of this name."""
    stored, partitions = columns(table)
    pairs = {quoted(name): quoted(value) for name, value in properties(table).items()}
    clauses = [
        f"CREATE EXTERNAL TABLE `{database}`.`{table.name}` {block('`{}` {}', stored)}",
        f"PARTITIONED BY {block('`{}` {}', partitions)}" if partitions else "",
        "STORED AS PARQUET",
        f"LOCATION {quoted(f'{address}/{table.name}/')}",
        "TBLPROPERTIES " + block("{} = {}", pairs),
    ]
    return "\n".join(filter(None, clauses))


def quoted(text: str) -> str:
    """A string literal of Hive: it's -> 'it\\'s'"""
    return "'" + re.sub(r"(['\\])", r"\\\1", text) + "'"


def block(form: str, pairs: dict[str, str]) -> str:
    """The pairs in parentheses, each on a line of its own."""
    return "(\n" + ",\n".join("  " + form.format(*pair) for pair in pairs.items()) + "\n)"


def entry(table: Table, address: str) -> dict[str, Any]:
    """The table as Glue's API writes it."""
    stored, partitions = columns(table)
    return {
        "Name": table.name,
        "TableType": "EXTERNAL_TABLE",
        "Parameters": {"EXTERNAL": "TRUE", **properties(table)},
        "PartitionKeys": glue_columns(partitions),
        "StorageDescriptor": {"Columns": glue_columns(stored), "Location": f"{address}/{table.name}/", **PARQUET},
    }


def glue_columns(types: dict[str, str]) -> list[dict[str, str]]:
    return [{"Name": name, "Type": kind.lower()} for name, kind in types.items()]


def contains(found: Any, wanted: Any) -> bool:
    """Whether a part of Glue's entry has all that is wanted. Glue and others add keys of their own."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(contains(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(contains, found, wanted))
    return found == wanted


def why_not(found: dict[str, Any], wanted: dict[str, Any], replace: bool) -> str:
    """Why --register must not change the table or view that it found in Glue; "" if it may."""
    name, storage = wanted["Name"], found.get("StorageDescriptor") or {}
    marked = found.get("TableType") == wanted["TableType"] and contains(found.get("Parameters"), MARK)
    if not marked and not from_version_1(found, wanted):
        return "catalog.py did not make this; rename or drop it, or choose another --database"
    address = storage.get("Location", "").removesuffix(f"/{name}/")
    if f"{address}/{name}/" != wanted["StorageDescriptor"]["Location"] and not replace:
        return f"it reads another lake, {address}; choose another --database, or add --replace to make it read this one"
    return ""


def from_version_1(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether it reads this lake and has nothing but what catalog.py wrote before it left a mark."""
    storage = {"Location": wanted["StorageDescriptor"]["Location"], **PARQUET}
    parameters = {"EXTERNAL": "TRUE", "classification": "parquet"}
    same = {"TableType": wanted["TableType"], "Parameters": parameters, "StorageDescriptor": storage}
    known = {column["Name"] for column in wanted["StorageDescriptor"]["Columns"] + wanted["PartitionKeys"]}
    return (
        contains(found, same)
        and all(
            re.fullmatch("EXTERNAL|classification|transient_.*|projection[.].*", key) for key in found["Parameters"]
        )
        and {column["Name"] for column in found["StorageDescriptor"].get("Columns", [])} <= known
    )


# ------------------------------------------------------------------------------------------------------------------
# The edges
# ------------------------------------------------------------------------------------------------------------------


def register(settings: etl.Settings, tables: list[Table], database: str, replace: bool) -> None:
    """Brings all tables in Glue up to date, or changes none; logs a line for each."""
    glue, address = glue_client(settings), lake(settings)
    wanted = {table.name: entry(table, address) for table in tables}
    found = {name: table_in(glue, database, name) for name in wanted}
    refuse(database, {name: why_not(found[name], wanted[name], replace) for name in wanted if found[name]})
    try:
        glue.get_database(Name=database)
    except glue.exceptions.EntityNotFoundException:
        glue.create_database(DatabaseInput={"Name": database})
        log.info("%s created", database)
    for table in tables:
        log.info("%s.%s %s", database, table.name, written(glue, database, found[table.name], wanted[table.name]))
        if is_listed(table):
            known, there = listed_in(glue, database, table), directories(settings, table)
            list_partitions(glue, database, wanted[table.name], known - there, there - known)


def glue_client(settings: etl.Settings):
    session = etl.aws_session(settings)
    if not session.region_name:
        raise UsageError("no AWS region: set [LAKE] REGION in dl.cfg, or AWS_DEFAULT_REGION")
    return session.client("glue")


def table_in(glue: Any, database: str, name: str) -> dict[str, Any] | None:
    try:
        return glue.get_table(DatabaseName=database, Name=name)["Table"]
    except glue.exceptions.EntityNotFoundException:
        return None


def refuse(database: str, reasons: dict[str, str]) -> None:
    """JobError with the names of the tables that have a reason."""
    for reason in filter(None, reasons.values()):
        names = ", ".join(f"{database}.{name}" for name in reasons if reasons[name] == reason)
        raise JobError(f"{names}: {reason}; nothing was changed")


def written(glue: Any, database: str, found: dict[str, Any] | None, wanted: dict[str, Any]) -> str:
    """Creates or updates the table if necessary, and says which."""
    if found is None:
        glue.create_table(DatabaseName=database, TableInput=wanted)
        return "created"
    if contains(found, wanted):
        return "unchanged"
    glue.update_table(DatabaseName=database, TableInput=wanted)
    return "updated"


def listed_in(glue: Any, database: str, table: Table) -> set[tuple[str, ...]]:
    """The values and the address of each partition in Glue."""
    pages = glue.get_paginator("get_partitions").paginate(
        DatabaseName=database, TableName=table.name, ExcludeColumnSchema=True
    )
    return {(*one["Values"], one["StorageDescriptor"]["Location"]) for page in pages for one in page["Partitions"]}


def directories(settings: etl.Settings, table: Table) -> set[tuple[str, ...]]:
    """The values and the address of each partition in the lake: a directory that holds a file."""
    address = lake(settings)
    layout = re.compile(f"{table.name}/" + "".join(f"{name}=([^/]*)/" for name in table.partitions))
    found = filter(None, map(layout.match, etl.Bucket(address, settings).files(table.name)))
    return {(*map(unquote, each.groups()), f"{address}/{each[0]}") for each in found}


def list_partitions(glue: Any, database: str, table: dict[str, Any], old: set[tuple], new: set[tuple]) -> None:
    """Removes the old partitions from Glue's list and adds the new ones."""
    names = {"DatabaseName": database, "TableName": table["Name"]}
    for some in batches(old, DELETED_AT_ONCE):
        values = [{"Values": list(one[:-1])} for one in some]
        check(glue.batch_delete_partition(**names, PartitionsToDelete=values), database, table["Name"])
    for some in batches(new, CREATED_AT_ONCE):
        storage = table["StorageDescriptor"]
        inputs = [{"Values": list(one[:-1]), "StorageDescriptor": {**storage, "Location": one[-1]}} for one in some]
        check(glue.batch_create_partition(**names, PartitionInputList=inputs), database, table["Name"])
    log.info("%s.%s: %d partitions added, %d removed", database, table["Name"], len(new), len(old))


def batches(partitions: set[tuple], size: int) -> Iterator[list[tuple]]:
    ordered = sorted(partitions)
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


def check(answer: dict[str, Any], database: str, name: str) -> None:
    """JobError if Glue refused one of the partitions."""
    for failure in answer.get("Errors", []):
        place, why = "/".join(failure["PartitionValues"]), failure["ErrorDetail"]["ErrorMessage"]
        raise JobError(f"{database}.{name}: {place}: {why}; run --register again: it continues from here")


# ------------------------------------------------------------------------------------------------------------------
# Commands
# ------------------------------------------------------------------------------------------------------------------


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="catalog.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="dl.cfg", metavar="FILE", help="the configuration (default: dl.cfg)")
    parser.add_argument("--output", metavar="ADDRESS", help="the s3:// address of the five tables")
    parser.add_argument("--database", default="sparkify", metavar="NAME", help="Athena's database (default: sparkify)")
    parser.add_argument("--register", action="store_true", help="create or update the tables in Glue; print no DDL")
    parser.add_argument(
        "--replace", action="store_true", help="with --register: point tables of another lake to this one"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Prints the DDL or registers the tables, and returns the exit code."""
    options = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    try:
        run(options)
    except JobError as error:
        log.error("%s", error)
        return error.exit_code
    except (BotoCoreError, ClientError) as error:
        log.error("%s", etl.explained("Glue", str(error), str(error)))
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; run --register again: it continues from here")
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    if not re.fullmatch("[a-z0-9_]+", options.database):
        raise UsageError(f"--database {options.database!r}: use only a-z, 0-9 and _")
    settings = etl.read_settings(options.config, output=options.output)
    tables = list(etl.tables_for(settings).values())
    if options.register:
        register(settings, tables, options.database, options.replace)
        return
    address = lake(settings) if etl.on_s3(settings.output) else PLACEHOLDER
    print(";\n\n".join(statements(tables, options.database, address)) + ";", flush=True)
    if address == PLACEHOLDER:
        log.warning("OUTPUT = %r is a directory, and Athena reads only S3: replace %s above", settings.output, address)


if __name__ == "__main__":
    sys.exit(main())
