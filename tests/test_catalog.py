"""catalog.py: its DDL against the files that the job writes, and its registration against moto's Glue.

Athena and Glue are not real here. sqlglot reads the DDL by Athena's grammar, botocore checks each request by Amazon's
own model, moto stands for Glue and S3.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pyarrow.parquet
import pytest
import sqlglot
from conftest import ROOT
from moto import mock_aws
from pyspark.sql import SparkSession
from sqlglot import exp

import catalog
import etl

REGION, BUCKET = "us-west-2", "lake"
BY_ARTIST = "year, artist_id"
LAYOUTS = {
    "by year and month": {"SONGS_PARTITION_BY": "year", "PLAYS_PARTITION_BY": "year, month"},
    "by artist and day": {"SONGS_PARTITION_BY": BY_ARTIST, "PLAYS_PARTITION_BY": "year, month, day"},
}
ATHENA = {
    "int64": "BIGINT",
    "int32": "INT",
    "double": "DOUBLE",
    "string": "STRING",
    "timestamp[us, tz=UTC]": "TIMESTAMP",
}


@pytest.fixture(autouse=True)
def nobodys_account(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    """config(KEY="value"): the path of a dl.cfg for a lake on S3."""

    def write(**overrides: str) -> str:
        lake = {"INPUT": f"s3://{BUCKET}/raw", "OUTPUT": f"s3a://{BUCKET}/tables/", "REGION": REGION, **overrides}
        keys = ["AWS_ACCESS_KEY_ID = AKIDCANARY", "AWS_SECRET_ACCESS_KEY = canary-secret"]
        path = tmp_path / "dl.cfg"
        path.write_text("\n".join(["[AWS CREDS]", *keys, "[LAKE]", *(f"{key} = {lake[key]}" for key in lake)]))
        path.chmod(0o600)
        return str(path)

    return write


# The DDL -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> dict[str, str]:
    return LAYOUTS[request.param]


@pytest.fixture(scope="module")
def output(spark: SparkSession, layout: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the job makes of the sample."""
    output = tmp_path_factory.mktemp("lake") / "output"
    by = {key.lower(): tuple(value.split(", ")) for key, value in layout.items()}
    etl.run(etl.Settings(input=str(ROOT / "data"), output=str(output), **by))
    return output


def printed(config: str, capsys: pytest.CaptureFixture, *options: str) -> str:
    assert catalog.main(["--config", config, *options]) == 0
    return capsys.readouterr().out


def created(text: str) -> dict[str, exp.Create]:
    """The tables that the statements create, by name, as Athena would read them."""
    statements = sqlglot.parse(text, dialect="athena")
    return {each.this.this.name: each for each in statements if isinstance(each, exp.Create) and each.kind == "TABLE"}


def types(columns: exp.Schema | None) -> dict[str, str]:
    return {each.name: each.kind.sql("hive") for each in columns.expressions} if columns else {}


def properties(table: exp.Create) -> dict[str, str]:
    return {each.name: each.args["value"].name for each in table.find_all(exp.Property) if type(each) is exp.Property}


@pytest.mark.parametrize("name", etl.TABLES)
def test_names_types_and_partitions_are_those_of_the_files_that_the_job_wrote(
    output: Path, layout: dict[str, str], config: Callable, capsys: pytest.CaptureFixture, name: str
) -> None:
    table = created(printed(config(**layout), capsys))[name]
    by = table.find(exp.PartitionedByProperty)
    files = list((output / name).rglob("*.parquet"))
    assert files
    for file in files:
        schema = pyarrow.parquet.read_schema(file)
        assert types(table.this) == {column.name: ATHENA[str(column.type)] for column in schema}
        directories = file.relative_to(output / name).parts[:-1]
        assert [each.split("=")[0] for each in directories] == list(types(by.this if by else None))


@pytest.mark.parametrize("name", etl.TABLES)
def test_every_partition_that_the_job_wrote_is_one_that_athena_looks_for(
    output: Path, layout: dict[str, str], config: Callable, capsys: pytest.CaptureFixture, name: str
) -> None:
    found = properties(created(printed(config(**layout), capsys))[name])
    if found.get("projection.enabled") != "true":
        return  # the directories are listed, see below
    for file in (output / name).rglob("*.parquet"):
        for directory in file.relative_to(output / name).parts[:-1]:
            column, value = directory.split("=")
            first, last = map(int, found[f"projection.{column}.range"].split(","))
            assert found[f"projection.{column}.type"] == "integer"
            assert value in map(str, range(first, last + 1))  # as text: month=1 is found, month=01 would not be


def years_in(rule: str) -> tuple[int, ...]:
    """The years that a rule of etl.py names, as numbers or as milliseconds."""
    numbers = [int(number) for number in re.findall("[0-9]+", rule)]
    return tuple(n if n < 10**4 else datetime.fromtimestamp(n / 1000, timezone.utc).year for n in numbers)


def test_athena_looks_for_each_year_that_the_job_accepts() -> None:
    for name, rule in {
        "songplays": etl.LOG_RULES["impossible time"],
        "time": etl.LOG_RULES["impossible time"],
        "songs": etl.SONG_RULES["impossible year"],
    }.items():
        assert catalog.RANGES[name]["year"] == years_in(rule)


def test_athena_looks_for_each_day_and_month() -> None:
    found = properties_of(
        etl.tables_for(etl.Settings(input="", output="", plays_partition_by=("year", "month", "day")))
    )
    for name in ("songplays", "time"):
        assert found[name]["projection.month.range"] == "1,12"
        assert found[name]["projection.day.range"] == "1,31"


def properties_of(tables: dict[str, etl.Table]) -> dict[str, dict[str, str]]:
    return {name: catalog.properties(table) for name, table in tables.items()}


@pytest.mark.parametrize(
    "name", ["it's", "it''s", "'", 'a "b"', "a b", "a,b", "it\u2019s", "a%27b", "&lt", "`a`", "a--b"]
)
def test_any_name_that_the_job_accepts_is_an_address_that_athena_reads(
    name: str, config: Callable, capsys: pytest.CaptureFixture
) -> None:
    tables = created(printed(config(), capsys, "--output", f"s3://{BUCKET}/{name}/lake"))
    places = {name: table.find(exp.LocationProperty).this.name for name, table in tables.items()}
    assert places == {table: f"s3://{BUCKET}/{name}/lake/{table}/" for table in etl.TABLES}


@pytest.mark.parametrize("text", ["it's", "\\", "\\'", "'\\'", "a\\nb"])
def test_a_quoted_text_is_one_literal_of_athenas_grammar(text: str) -> None:
    [table] = sqlglot.parse(f"CREATE EXTERNAL TABLE a (b INT) LOCATION {catalog.quoted(text)}", dialect="athena")
    assert table.find(exp.LocationProperty).this.name == text


def test_the_statement_for_a_table_fails_where_another_table_has_its_name(
    config: Callable, capsys: pytest.CaptureFixture
) -> None:
    assert not any(table.args["exists"] for table in created(printed(config(), capsys)).values())


def test_a_lake_on_a_disk_gets_ddl_with_a_placeholder_and_a_warning(
    capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    tables = created(printed(str(ROOT / "dl.cfg"), capsys))
    assert {name: table.find(exp.LocationProperty).this.name for name, table in tables.items()} == {
        name: f"s3://BUCKET/PREFIX/{name}/" for name in etl.TABLES
    }
    [line] = caplog.messages
    assert "OUTPUT = 'output'" in line and "replace s3://BUCKET/PREFIX" in line


def test_a_location_is_on_s3_however_the_output_is_written(config: Callable, capsys: pytest.CaptureFixture) -> None:
    for output in ("s3a://lake/tables/", "s3n://lake/tables", "s3://lake/tables"):
        tables = created(printed(config(OUTPUT=output), capsys))
        places = {name: table.find(exp.LocationProperty).this.name for name, table in tables.items()}
        assert places == {name: f"s3://lake/tables/{name}/" for name in etl.TABLES}


def test_the_statements_create_the_database_first_and_list_the_songs_by_artist_last(
    config: Callable, capsys: pytest.CaptureFixture
) -> None:
    text = printed(config(SONGS_PARTITION_BY=BY_ARTIST), capsys, "--database", "listening")
    statements = [each.strip() for each in text.split(";") if each.strip()]
    assert statements[0] == "CREATE DATABASE IF NOT EXISTS `listening`"
    assert statements[-1] == "MSCK REPAIR TABLE `listening`.`songs`"
    assert [each.split("(")[0].split()[-1] for each in statements[1:-1]] == [f"`listening`.`{n}`" for n in etl.TABLES]


# Registration ------------------------------------------------------------------------------------------------------


SESSION = boto3.Session(region_name=REGION)  # one for all: to load its models takes time


class Aws(NamedTuple):
    glue: Any
    s3: Any


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    """moto's Glue and S3."""
    with mock_aws():
        clients = Aws(SESSION.client("glue"), SESSION.client("s3"))
        clients.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        monkeypatch.setattr(catalog, "glue_client", lambda settings: clients.glue)
        monkeypatch.setattr(etl, "s3_client", lambda settings: clients.s3)
        yield clients


@pytest.fixture
def asked(aws: Aws) -> list[str]:
    """The names of the calls that catalog.py and the test make."""
    calls = []
    for client in aws:
        client.meta.events.register(
            "before-parameter-build.*.*",
            lambda model, **_: calls.append(f"{model.service_model.service_name}:{model.name}"),
        )
    return calls


def register(config: str, *options: str) -> int:
    return catalog.main(["--config", config, "--register", *options])


def in_glue(aws: Aws, database: str = "sparkify") -> dict[str, dict]:
    return {table["Name"]: table for table in aws.glue.get_tables(DatabaseName=database)["TableList"]}


def put_songs(aws: Aws, *directories: str) -> None:
    for directory in directories:
        aws.s3.put_object(Bucket=BUCKET, Key=f"tables/songs/{directory}/part-0.parquet", Body=b"")


def partitions(aws: Aws) -> dict[tuple, str]:
    found = aws.glue.get_partitions(DatabaseName="sparkify", TableName="songs")["Partitions"]
    return {tuple(each["Values"]): each["StorageDescriptor"]["Location"] for each in found}


def changes(asked: list[str]) -> list[str]:
    return [call for call in asked if not re.search(":(Get|List)", call)]


@pytest.mark.parametrize("name", etl.TABLES)
def test_glue_holds_what_the_ddl_says(aws: Aws, config: Callable, capsys: pytest.CaptureFixture, name: str) -> None:
    table = created(printed(config(), capsys))[name]
    assert register(config()) == 0
    found, by = in_glue(aws)[name], table.find(exp.PartitionedByProperty)
    assert found["TableType"] == "EXTERNAL_TABLE"
    assert glue_types(found["StorageDescriptor"]["Columns"]) == types(table.this)
    assert glue_types(found["PartitionKeys"]) == types(by.this if by else None)
    assert found["StorageDescriptor"]["Location"] == table.find(exp.LocationProperty).this.name
    assert found["Parameters"] == {"EXTERNAL": "TRUE", **properties(table)}


def glue_types(columns: list[dict[str, str]]) -> dict[str, str]:
    """Glue writes types in small letters, as Hive does."""
    assert all(each["Type"].islower() for each in columns)
    return {each["Name"]: each["Type"].upper() for each in columns}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_second_registration_changes_nothing_and_says_so(
    aws: Aws, asked: list[str], config: Callable, caplog: pytest.LogCaptureFixture, layout: dict
) -> None:
    path = config(**layout)
    put_songs(aws, "year=0/artist_id=AR1")
    assert register(path) == 0
    assert f"sparkify.{list(etl.TABLES)[0]} created" in caplog.messages
    caplog.clear()
    asked.clear()
    assert register(path) == 0
    assert changes(asked) == []
    assert [each for each in caplog.messages if "partitions" not in each] == [
        f"sparkify.{name} unchanged" for name in etl.TABLES
    ]


def test_what_glue_and_others_add_to_a_table_is_no_change(aws: Aws, asked: list[str], config: Callable) -> None:
    assert register(config()) == 0
    users = in_glue(aws)["users"]
    users["Parameters"]["transient_lastDdlTime"] = "1542499200"
    users["StorageDescriptor"]["Columns"][0]["Comment"] = "the key"
    aws.glue.update_table(DatabaseName="sparkify", TableInput=table_input(users))
    asked.clear()
    assert register(config()) == 0
    assert changes(asked) == []


def table_input(table: dict[str, Any]) -> dict[str, Any]:
    """The parts of a table that catalog.py writes."""
    parts = ("Name", "TableType", "StorageDescriptor", "Parameters", "PartitionKeys")
    return copy.deepcopy({key: table[key] for key in parts})


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table["StorageDescriptor"]["Columns"].pop(),
        lambda table: table["StorageDescriptor"]["Columns"][1].update(Type="string"),
        lambda table: table["PartitionKeys"].reverse(),
        lambda table: table["Parameters"].update({"projection.year.range": "2018,2018"}),
        lambda table: table["Parameters"].pop("projection.enabled"),
    ],
    ids=["column", "type", "partitions", "range", "projection"],
)
def test_a_table_that_differs_is_updated_and_the_others_are_left_alone(
    aws: Aws, config: Callable, caplog: pytest.LogCaptureFixture, change: Callable
) -> None:
    assert register(config()) == 0
    before = table_input(in_glue(aws)["time"])
    other = copy.deepcopy(before)
    change(other)
    aws.glue.update_table(DatabaseName="sparkify", TableInput=other)
    caplog.clear()
    assert register(config()) == 0
    assert [each for each in caplog.messages if "unchanged" not in each] == ["sparkify.time updated"]
    assert table_input(in_glue(aws)["time"]) == before


def test_songs_by_artist_have_each_directory_listed_also_the_unknown_and_the_escaped(
    aws: Aws, config: Callable
) -> None:
    put_songs(aws, "year=0/artist_id=__HIVE_DEFAULT_PARTITION__", "year=1999/artist_id=A%3A1", "_temporary/0")
    assert register(config(SONGS_PARTITION_BY=BY_ARTIST)) == 0
    assert partitions(aws) == {
        ("0", "__HIVE_DEFAULT_PARTITION__"): "s3://lake/tables/songs/year=0/artist_id=__HIVE_DEFAULT_PARTITION__/",
        ("1999", "A:1"): "s3://lake/tables/songs/year=1999/artist_id=A%3A1/",
    }


def test_registering_again_lists_new_artists_and_takes_vanished_ones_away(
    aws: Aws, asked: list[str], config: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    path = config(SONGS_PARTITION_BY=BY_ARTIST)
    put_songs(aws, *(f"year=2000/artist_id=AR{n}" for n in range(250)))
    assert register(path) == 0
    assert "sparkify.songs: 250 partitions added, 0 removed" in caplog.messages
    for n in range(30):
        aws.s3.delete_object(Bucket=BUCKET, Key=f"tables/songs/year=2000/artist_id=AR{n}/part-0.parquet")
    put_songs(aws, "year=2001/artist_id=AR0")
    assert register(path) == 0
    assert "sparkify.songs: 1 partitions added, 30 removed" in caplog.messages
    # Glue, unlike moto, takes no more than 100 new and 25 old ones in a call.
    assert (asked.count("glue:BatchCreatePartition"), asked.count("glue:BatchDeletePartition")) == (3 + 1, 2)
    assert set(partitions(aws)) == {("2001", "AR0"), *(("2000", f"AR{n}") for n in range(30, 250))}


def test_a_lake_that_has_moved_takes_its_partitions_along(aws: Aws, config: Callable) -> None:
    put_songs(aws, "year=2000/artist_id=AR1")
    assert register(config(SONGS_PARTITION_BY=BY_ARTIST)) == 0
    aws.s3.put_object(Bucket=BUCKET, Key="new/songs/year=2000/artist_id=AR1/part-0.parquet", Body=b"")
    assert register(config(SONGS_PARTITION_BY=BY_ARTIST), "--output", "s3://lake/new", "--replace") == 0
    assert partitions(aws) == {("2000", "AR1"): "s3://lake/new/songs/year=2000/artist_id=AR1/"}


def put_table(aws: Aws, name: str = "users", **parts: Any) -> dict[str, Any]:
    """A table in Glue that catalog.py did not make, unless the parts say so."""
    storage = {"Columns": [{"Name": "user_id", "Type": "bigint"}], "Location": f"s3://{BUCKET}/tables/{name}/"}
    table = {
        "Name": name,
        "TableType": "EXTERNAL_TABLE",
        "Parameters": {"EXTERNAL": "TRUE", "classification": "parquet"},
        "StorageDescriptor": {**storage, **catalog.PARQUET},
        "PartitionKeys": [],
        **parts,
    }
    with contextlib.suppress(aws.glue.exceptions.AlreadyExistsException):
        aws.glue.create_database(DatabaseInput={"Name": "sparkify"})
    aws.glue.create_table(DatabaseName="sparkify", TableInput=table)
    return in_glue(aws)[name]


OTHERS = {
    "a table of another place": {
        "StorageDescriptor": {"Columns": [], "Location": "s3://their-bucket/users/", **catalog.PARQUET}
    },
    "a table of CSV": {"StorageDescriptor": {"Columns": [], "Location": f"s3://{BUCKET}/tables/users/"}},
    "a table with other columns": {
        "StorageDescriptor": {
            "Columns": [{"Name": "email", "Type": "string"}],
            "Location": f"s3://{BUCKET}/tables/users/",
            **catalog.PARQUET,
        }
    },
    "a view": {
        "TableType": "VIRTUAL_VIEW",
        "Parameters": {"presto_view": "true"},
        "StorageDescriptor": {"Columns": [], "Location": ""},
        "ViewOriginalText": "/* Presto View: e30= */",
    },
    "a crawler's table": {
        "Parameters": {
            "EXTERNAL": "TRUE",
            "classification": "parquet",
            "UPDATED_BY_CRAWLER": "nightly",
            "CrawlerSchemaSerializerVersion": "1.0",
        }
    },
    "an Iceberg table": {"Parameters": {"table_type": "ICEBERG", "metadata_location": "s3://lake/x.json"}},
    "a managed table": {"TableType": "MANAGED_TABLE"},
    "a view with our mark": {"TableType": "VIRTUAL_VIEW", "Parameters": catalog.MARK},
}


@pytest.mark.parametrize("replace", [(), ("--replace",)], ids=["", "replace"])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_catalog_py_has_not_made_is_named_and_nothing_is_changed(
    aws: Aws, asked: list[str], config: Callable, caplog: pytest.LogCaptureFixture, other: dict, replace: tuple
) -> None:
    put_table(aws, **other)
    before = in_glue(aws)
    asked.clear()
    assert register(config(), *replace) == 1
    [line] = caplog.messages
    assert line.startswith("sparkify.users: catalog.py did not make this") and "--database" in line
    assert changes(asked) == []
    assert in_glue(aws) == before


def test_an_entry_that_has_only_a_name_is_not_ours(aws: Aws, config: Callable) -> None:
    aws.glue.create_database(DatabaseInput={"Name": "sparkify"})
    aws.glue.create_table(DatabaseName="sparkify", TableInput={"Name": "time"})
    assert register(config()) == 1
    assert list(in_glue(aws)) == ["time"]


def test_all_the_tables_that_are_not_ours_are_named_at_once(
    aws: Aws, config: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("users", "time"):
        put_table(aws, name, TableType="VIRTUAL_VIEW")
    assert register(config()) == 1
    assert caplog.messages[-1].startswith("sparkify.users, sparkify.time: ")


def test_tables_that_others_have_beside_ours_do_not_matter(aws: Aws, config: Callable) -> None:
    put_table(aws, "listeners")
    assert register(config()) == 0
    assert set(in_glue(aws)) == {"listeners", *etl.TABLES}


def test_a_second_lake_in_the_same_database_needs_a_word_from_the_user(
    aws: Aws, asked: list[str], config: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    assert register(config()) == 0
    caplog.clear()
    asked.clear()
    assert register(config(), "--output", "s3://lake/test") == 1
    [line] = caplog.messages
    assert line.startswith(", ".join(f"sparkify.{name}" for name in etl.TABLES))
    assert "s3://lake/tables" in line and "--replace" in line and changes(asked) == []
    assert register(config(), "--output", "s3://lake/test", "--replace") == 0
    places = {name: table["StorageDescriptor"]["Location"] for name, table in in_glue(aws).items()}
    assert places == {name: f"s3://lake/test/{name}/" for name in etl.TABLES}


def test_a_second_lake_in_a_database_of_its_own_needs_no_word(aws: Aws, config: Callable) -> None:
    assert register(config()) == 0
    assert register(config(), "--output", "s3://lake/test", "--database", "trial") == 0
    assert in_glue(aws)["time"]["StorageDescriptor"]["Location"] == "s3://lake/tables/time/"


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_tables_from_before_the_mark_are_updated_to_the_columns_of_today(
    aws: Aws, config: Callable, layout: dict[str, str]
) -> None:
    assert register(config(**layout)) == 0
    after = {name: table_input(table) for name, table in in_glue(aws).items()}
    for table in copy.deepcopy(list(after.values())):
        table["Parameters"].pop(*catalog.MARK)
        columns = table["StorageDescriptor"]["Columns"]
        columns[:] = [each for each in columns if each["Name"] not in ("song_title", "artist_name", "song_length")]
        aws.glue.update_table(DatabaseName="sparkify", TableInput=table)
    assert register(config(**layout)) == 0
    assert {name: table_input(table) for name, table in in_glue(aws).items()} == after


def test_tables_made_from_the_printed_ddl_are_ours(aws: Aws, config: Callable, capsys: pytest.CaptureFixture) -> None:
    for name, table in created(printed(config(), capsys)).items():
        by = table.find(exp.PartitionedByProperty)
        put_table(
            aws,
            name,
            Parameters={"EXTERNAL": "TRUE", "transient_lastDdlTime": "1542499200", **properties(table)},
            StorageDescriptor={
                "Columns": glue_form(types(table.this)),
                "Location": table.find(exp.LocationProperty).this.name,
                **catalog.PARQUET,
            },
            PartitionKeys=glue_form(types(by.this if by else None)),
        )
    assert register(config()) == 0


def glue_form(types: dict[str, str]) -> list[dict[str, str]]:
    return [{"Name": name, "Type": kind.lower()} for name, kind in types.items()]


def test_a_partition_that_glue_refuses_is_named(
    aws: Aws, config: Callable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = {"PartitionValues": ["2000", "AR1"], "ErrorDetail": {"ErrorMessage": "too many partitions"}}
    monkeypatch.setattr(aws.glue, "batch_create_partition", lambda **_: {"Errors": [failure]})
    put_songs(aws, "year=2000/artist_id=AR1")
    assert register(config(SONGS_PARTITION_BY=BY_ARTIST)) == 1
    assert "sparkify.songs: 2000/AR1: too many partitions" in caplog.messages[-1]


def test_the_catalogue_policy_allows_what_registering_asks_for_and_no_more(
    aws: Aws, asked: list[str], config: Callable
) -> None:
    put_songs(aws, "year=2000/artist_id=AR1")
    assert register(config(SONGS_PARTITION_BY=BY_ARTIST)) == 0
    aws.s3.delete_object(Bucket=BUCKET, Key="tables/songs/year=2000/artist_id=AR1/part-0.parquet")
    assert register(config(SONGS_PARTITION_BY=BY_ARTIST)) == 0
    assert register(config(SONGS_PARTITION_BY="year")) == 0
    allowed = set()
    for statement in json.loads((ROOT / "iam/catalog.json").read_text(encoding="utf-8"))["Statement"]:
        actions = statement["Action"]
        allowed |= {actions} if isinstance(actions, str) else set(actions)
    by_the_test = {"s3:PutObject", "s3:DeleteObject"}
    needed = {call.replace("s3:ListObjectsV2", "s3:ListBucket") for call in asked} - by_the_test
    assert needed == allowed


# Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "options", "said"),
    [
        ({"OUTPUT": "output"}, ["--register"], "[LAKE] OUTPUT = 'output'"),
        ({"ENDPOINT": "http://127.0.0.1:9000"}, ["--register"], "[LAKE] ENDPOINT"),
        ({"ENDPOINT": "http://127.0.0.1:9000"}, [], "[LAKE] ENDPOINT"),
    ],
)
def test_a_lake_that_athena_cannot_read_is_one_line_and_exit_2(
    config: Callable, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture, wrong, options, said
) -> None:
    assert catalog.main(["--config", config(**wrong), *options]) == 2
    assert [said in each and "\n" not in each for each in caplog.messages] == [True]
    assert capsys.readouterr().out == ""


def test_a_database_name_that_athena_would_refuse_is_exit_2(config: Callable, caplog: pytest.LogCaptureFixture) -> None:
    assert catalog.main(["--config", config(), "--database", "My-Lake"]) == 2
    assert "--database 'My-Lake'" in caplog.text


def test_no_region_is_exit_2(
    config: Callable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    assert register(config(REGION="")) == 2
    assert "[LAKE] REGION" in caplog.text


def test_a_refusal_of_glue_is_one_line_with_the_remedy_and_exit_1(
    aws: Aws, config: Callable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "not authorized"}}, "GetTable")

    monkeypatch.setattr(aws.glue, "get_table", refuse)
    assert register(config()) == 1
    [line] = caplog.messages
    assert line.startswith("Glue: access denied") and "iam/" in line and "\n" not in line
    assert "canary-secret" not in caplog.text
