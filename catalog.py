#!/usr/bin/env python3
"""Tells Athena of the lake's five tables: prints their DDL, or writes them into the Glue Data Catalog.

    python catalog.py                prints the DDL; Athena's editor takes one statement at a time
    python catalog.py --register     creates or updates the tables in Glue; done twice it changes nothing

Names, types and partitions are those of etl.py, the place is [LAKE] OUTPUT, which has to be on S3. Athena works the
partitions out by itself (partition projection), so a new month needs no call. Where a query gives no year it looks at
all that there may be: write WHERE year = 2018 wherever you can.

Songs by year and artist (SONGS_PARTITION_BY) are the exception. Artists cannot be worked out, so the catalogue lists
their directories, and every run of the job that may bring a new one asks for --register again.

Exit codes: as etl.py's. 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

import etl
from etl import JobError, Table, UsageError

log = logging.getLogger("catalog")

# What a partition may hold. A year outside is in the files, and Athena does not see it.
PLAYED = (2000, 2099)  # the job takes no log line from before or after
RELEASED = (0, 2099)  # 0: unknown
MONTHS = (1, 12)
RANGES = {
    "songplays": {"year": PLAYED, "month": MONTHS},
    "time": {"year": PLAYED, "month": MONTHS},
    "songs": {"year": RELEASED},
}

PARQUET = {
    "InputFormat": "org.apache.hadoop.hive.ql.io.parquet.MapredParquetInputFormat",
    "OutputFormat": "org.apache.hadoop.hive.ql.io.parquet.MapredParquetOutputFormat",
    "SerdeInfo": {"SerializationLibrary": "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe"},
}
CREATED_AT_ONCE, DELETED_AT_ONCE = 100, 25  # partitions, in one call to Glue


# ------------------------------------------------------------------------------------------------------------------
# The tables as Athena is to see them
# ------------------------------------------------------------------------------------------------------------------


def schema(settings: etl.Settings) -> list[Table]:
    """The five tables in the layout that the job writes."""
    songs = etl.TABLES["songs"]._replace(partitions=etl.LAYOUTS[settings.songs_partition_by])
    return list({**etl.TABLES, "songs": songs}.values())


def lake(settings: etl.Settings) -> str:
    """The address of OUTPUT as Athena takes it: s3a://lake/tables/ -> s3://lake/tables"""
    if not etl.on_s3(settings.output):
        raise UsageError(
            f"[LAKE] OUTPUT = {settings.output!r}: Athena reads S3 alone; set an s3://BUCKET/PREFIX, or give --output"
        )
    if settings.endpoint:
        raise UsageError(f"[LAKE] ENDPOINT = {settings.endpoint!r}: Athena reads Amazon's S3 alone; leave it out")
    return "s3://" + etl.s3_path(settings.output)


def columns(table: Table) -> tuple[dict[str, str], dict[str, str]]:
    """Name and type of the columns that are in the files, and of those that are in the directories' names."""
    types = dict(column.split() for column in table.columns.split(","))
    stored = {name: kind for name, kind in types.items() if name not in table.partitions}
    return stored, {name: types[name] for name in table.partitions}


def properties(table: Table) -> dict[str, str]:
    """How Athena finds the partitions. Not `injected`: then each query on songs would have to name its artists."""
    if not table.partitions:
        return {}
    ranges = RANGES[table.name]
    if set(table.partitions) != set(ranges):
        return {"projection.enabled": "false"}
    told = {"projection.enabled": "true"}
    for column in table.partitions:
        told[f"projection.{column}.type"] = "integer"
        told[f"projection.{column}.range"] = "{},{}".format(*ranges[column])
    return told


def listed(table: Table) -> bool:
    """Whether the catalogue has to list the table's partitions."""
    return properties(table).get("projection.enabled") == "false"


def statements(tables: list[Table], database: str, place: str) -> list[str]:
    """What has to be told to Athena, in this order."""
    repairs = [f"MSCK REPAIR TABLE `{database}`.`{table.name}`" for table in tables if listed(table)]
    return [f"CREATE DATABASE IF NOT EXISTS `{database}`", *(ddl(table, database, place) for table in tables), *repairs]


def ddl(table: Table, database: str, place: str) -> str:
    """The statement that creates the table. All names are quoted: Hive has many words of its own."""
    stored, partitions = columns(table)
    told = {"classification": "parquet", **properties(table)}
    clauses = [
        f"CREATE EXTERNAL TABLE IF NOT EXISTS `{database}`.`{table.name}` {block('`{}` {}', stored)}",
        f"PARTITIONED BY {block('`{}` {}', partitions)}" if partitions else "",
        "STORED AS PARQUET",
        f"LOCATION '{place}/{table.name}/'",
        "TBLPROPERTIES " + block("'{}' = '{}'", told),
    ]
    return "\n".join(filter(None, clauses))


def block(form: str, pairs: dict[str, str]) -> str:
    """The pairs in parentheses, each on a line of its own."""
    return "(\n" + ",\n".join("  " + form.format(*pair) for pair in pairs.items()) + "\n)"


def entry(table: Table, place: str) -> dict[str, Any]:
    """The table as Glue keeps it."""
    stored, partitions = columns(table)
    return {
        "Name": table.name,
        "TableType": "EXTERNAL_TABLE",
        "Parameters": {"EXTERNAL": "TRUE", "classification": "parquet", **properties(table)},
        "PartitionKeys": glue_columns(partitions),
        "StorageDescriptor": {"Columns": glue_columns(stored), "Location": f"{place}/{table.name}/", **PARQUET},
    }


def glue_columns(types: dict[str, str]) -> list[dict[str, str]]:
    return [{"Name": name, "Type": kind.lower()} for name, kind in types.items()]


def says(found: Any, wanted: Any) -> bool:
    """Whether what Glue keeps says all that is wanted; it adds much of its own."""
    if isinstance(wanted, dict):
        return all(key in found and says(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(says, found, wanted))
    return found == wanted


# ------------------------------------------------------------------------------------------------------------------
# The edges
# ------------------------------------------------------------------------------------------------------------------


class Aws(NamedTuple):
    """The services that are asked, as boto3 clients."""

    glue: Any
    s3: Any


def connect(settings: etl.Settings) -> Aws:
    session = etl.aws_session(settings)
    if not session.region_name:
        raise UsageError("no AWS region: set [LAKE] REGION in dl.cfg, or AWS_DEFAULT_REGION")
    return Aws(session.client("glue"), etl.s3_client(settings))


def register(aws: Aws, tables: list[Table], database: str, place: str) -> None:
    """Brings Glue to what is wanted, with a line for the database and for each table."""
    try:
        aws.glue.get_database(Name=database)
    except aws.glue.exceptions.EntityNotFoundException:
        aws.glue.create_database(DatabaseInput={"Name": database})
        log.info("%s created", database)
    for table in tables:
        log.info("%s.%s %s", database, table.name, registered(aws.glue, entry(table, place), database))
        if listed(table):
            changed = list_partitions(aws, table, database, place)
            log.info("%s.%s: %d partitions added, %d removed", database, table.name, *changed)


def registered(glue: Any, wanted: dict[str, Any], database: str) -> str:
    """Creates or updates the table if need be, and says which."""
    try:
        found = glue.get_table(DatabaseName=database, Name=wanted["Name"])["Table"]
    except glue.exceptions.EntityNotFoundException:
        glue.create_table(DatabaseName=database, TableInput=wanted)
        return "created"
    if says(found, wanted):
        return "unchanged"
    glue.update_table(DatabaseName=database, TableInput=wanted)
    return "updated"


def list_partitions(aws: Aws, table: Table, database: str, place: str) -> tuple[int, int]:
    """Makes Glue's list of the table's partitions that of its directories; how many were added and how many removed."""
    names = {"DatabaseName": database, "TableName": table.name}
    storage = entry(table, place)["StorageDescriptor"]
    pages = aws.glue.get_paginator("get_partitions").paginate(**names, ExcludeColumnSchema=True)
    known = {(*one["Values"], one["StorageDescriptor"]["Location"]) for page in pages for one in page["Partitions"]}
    found = set(directories(aws.s3, storage["Location"], table.partitions))
    for some in batches(known - found, DELETED_AT_ONCE):
        values = [{"Values": list(one[:-1])} for one in some]
        check(aws.glue.batch_delete_partition(**names, PartitionsToDelete=values), database, table.name)
    for some in batches(found - known, CREATED_AT_ONCE):
        inputs = [{"Values": list(one[:-1]), "StorageDescriptor": {**storage, "Location": one[-1]}} for one in some]
        check(aws.glue.batch_create_partition(**names, PartitionInputList=inputs), database, table.name)
    return len(found - known), len(known - found)


def directories(s3: Any, location: str, partitions: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The partitions' values and the address of each directory below the location that has a file in it."""
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    layout = re.compile("".join(f"{name}=([^/]*)/" for name in partitions))
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            if found := layout.match(item["Key"], len(prefix)):
                yield *map(unquote, found.groups()), location + found[0]


def batches(partitions: set[tuple[str, ...]], size: int) -> Iterator[list[tuple[str, ...]]]:
    ordered = sorted(partitions)
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


def check(answer: dict[str, Any], database: str, name: str) -> None:
    """JobError if Glue did not take one of the partitions."""
    for failure in answer.get("Errors", []):
        told = f"{'/'.join(failure['PartitionValues'])}: {failure['ErrorDetail']['ErrorMessage']}"
        raise JobError(f"{database}.{name}: {told}; register again: it goes on from here")


# ------------------------------------------------------------------------------------------------------------------
# Commands
# ------------------------------------------------------------------------------------------------------------------


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="catalog.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="dl.cfg", metavar="FILE", help="the configuration (default: dl.cfg)")
    parser.add_argument("--output", metavar="ADDRESS", help="the s3:// address of the five tables")
    parser.add_argument(
        "--database", default="sparkify", metavar="NAME", help="Athena's database for them (default: sparkify)"
    )
    parser.add_argument("--register", action="store_true", help="create or update the tables in Glue; print no DDL")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Prints the DDL or registers the tables; the exit code tells how it went."""
    options = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    try:
        run(options)
    except JobError as error:
        log.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        log.error("interrupted; register again: it goes on from here")
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    if not re.fullmatch("[a-z0-9_]+", options.database):
        raise UsageError(f"--database {options.database!r}: Athena's names are of a-z, 0-9 and _")
    settings = etl.read_settings(options.config, output=options.output)
    tables, place = schema(settings), lake(settings)
    if not options.register:
        print(";\n\n".join(statements(tables, options.database, place)) + ";")
        return
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise UsageError("catalog.py --register needs boto3: pip install boto3") from None
    try:
        register(connect(settings), tables, options.database, place)
    except (BotoCoreError, ClientError) as error:
        raise JobError(etl.explained("Glue", str(error), str(error))) from None


if __name__ == "__main__":
    sys.exit(main())
