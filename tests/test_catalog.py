"""catalog.py: its DDL against the files that the job writes, and its registration against moto's Glue.

Athena itself cannot be had here. sqlglot reads the DDL by Athena's grammar, botocore checks every request by Amazon's
own model.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module", params=etl.LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def output(spark: SparkSession, layout: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the job makes of the sample."""
    output = tmp_path_factory.mktemp("lake") / "output"
    etl.run(etl.Settings(input=str(ROOT / "data"), output=str(output), songs_partition_by=layout))
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
    output: Path, layout: str, config: Callable, capsys: pytest.CaptureFixture, name: str
) -> None:
    table = created(printed(config(SONGS_PARTITION_BY=layout), capsys))[name]
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
    output: Path, layout: str, config: Callable, capsys: pytest.CaptureFixture, name: str
) -> None:
    told = properties(created(printed(config(SONGS_PARTITION_BY=layout), capsys))[name])
    if told.get("projection.enabled") != "true":
        return  # the directories are listed, see below
    for file in (output / name).rglob("*.parquet"):
        for directory in file.relative_to(output / name).parts[:-1]:
            column, value = directory.split("=")
            first, last = map(int, told[f"projection.{column}.range"].split(","))
            assert told[f"projection.{column}.type"] == "integer"
            assert value in map(str, range(first, last + 1))  # as text: month=1 is found, month=01 would not be


def test_athena_looks_for_each_year_of_which_the_job_takes_log_lines() -> None:
    taken = re.findall("[0-9]{10,}", etl.LOG_RULES["impossible time"])
    years = tuple(datetime.fromtimestamp(int(ms) / 1000, timezone.utc).year for ms in taken)
    assert years == catalog.RANGES["songplays"]["year"] == catalog.RANGES["time"]["year"]


def test_athena_looks_for_songs_of_an_unknown_year() -> None:
    assert catalog.RANGES["songs"]["year"][0] == 0


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


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[catalog.Aws]:
    """moto's Glue and S3; `asked` holds the names of the calls that catalog.py makes."""
    with mock_aws():
        clients = catalog.connect(etl.Settings(input="", output="", region=REGION))
        clients.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        monkeypatch.setattr(catalog, "connect", lambda settings: clients)
        yield clients


@pytest.fixture
def asked(aws: catalog.Aws) -> list[str]:
    calls = []
    for client in aws:
        client.meta.events.register(
            "before-parameter-build.*.*",
            lambda model, **_: calls.append(f"{model.service_model.service_name}:{model.name}"),
        )
    return calls


def register(config: str, *options: str) -> int:
    return catalog.main(["--config", config, "--register", *options])


def in_glue(aws: catalog.Aws, database: str = "sparkify") -> dict[str, dict]:
    return {table["Name"]: table for table in aws.glue.get_tables(DatabaseName=database)["TableList"]}


def put_songs(aws: catalog.Aws, *directories: str) -> None:
    for directory in directories:
        aws.s3.put_object(Bucket=BUCKET, Key=f"tables/songs/{directory}/part-0.parquet", Body=b"")


def partitions(aws: catalog.Aws) -> dict[tuple, str]:
    found = aws.glue.get_partitions(DatabaseName="sparkify", TableName="songs")["Partitions"]
    return {tuple(each["Values"]): each["StorageDescriptor"]["Location"] for each in found}


def changes(asked: list[str]) -> list[str]:
    return [call for call in asked if not re.search(":(Get|List)", call)]


@pytest.mark.parametrize("name", etl.TABLES)
def test_glue_holds_what_the_ddl_says(
    aws: catalog.Aws, config: Callable, capsys: pytest.CaptureFixture, name: str
) -> None:
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


@pytest.mark.parametrize("layout", etl.LAYOUTS)
def test_a_second_registration_changes_nothing_and_says_so(
    aws: catalog.Aws, asked: list[str], config: Callable, caplog: pytest.LogCaptureFixture, layout: str
) -> None:
    path = config(SONGS_PARTITION_BY=layout)
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


def test_what_glue_and_others_add_to_a_table_is_no_change(aws: catalog.Aws, asked: list[str], config: Callable) -> None:
    assert register(config()) == 0
    users = in_glue(aws)["users"]
    users["Parameters"]["transient_lastDdlTime"] = "1542499200"
    users["StorageDescriptor"]["Columns"][0]["Comment"] = "the key"
    aws.glue.update_table(DatabaseName="sparkify", TableInput=table_input(users))
    asked.clear()
    assert register(config()) == 0
    assert changes(asked) == []


def table_input(table: dict[str, Any]) -> dict[str, Any]:
    """The part of a table that catalog.py says."""
    told = ("Name", "TableType", "StorageDescriptor", "Parameters", "PartitionKeys")
    return copy.deepcopy({key: table[key] for key in told})


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table["StorageDescriptor"].update(Location="s3://elsewhere/time/"),
        lambda table: table["StorageDescriptor"]["Columns"].pop(),
        lambda table: table["StorageDescriptor"]["Columns"][1].update(Type="string"),
        lambda table: table["PartitionKeys"].reverse(),
        lambda table: table["Parameters"].update({"projection.year.range": "2018,2018"}),
        lambda table: table["Parameters"].pop("projection.enabled"),
    ],
    ids=["place", "column", "type", "partitions", "range", "projection"],
)
def test_a_table_that_differs_is_updated_and_the_others_are_left_alone(
    aws: catalog.Aws, config: Callable, caplog: pytest.LogCaptureFixture, change: Callable
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
    aws: catalog.Aws, config: Callable
) -> None:
    put_songs(aws, "year=0/artist_id=__HIVE_DEFAULT_PARTITION__", "year=1999/artist_id=A%3A1", "_temporary/0")
    assert register(config(SONGS_PARTITION_BY=BY_ARTIST)) == 0
    assert partitions(aws) == {
        ("0", "__HIVE_DEFAULT_PARTITION__"): "s3://lake/tables/songs/year=0/artist_id=__HIVE_DEFAULT_PARTITION__/",
        ("1999", "A:1"): "s3://lake/tables/songs/year=1999/artist_id=A%3A1/",
    }


def test_registering_again_lists_new_artists_and_takes_vanished_ones_away(
    aws: catalog.Aws, asked: list[str], config: Callable, caplog: pytest.LogCaptureFixture
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


def test_a_lake_that_has_moved_takes_its_partitions_along(aws: catalog.Aws, config: Callable) -> None:
    put_songs(aws, "year=2000/artist_id=AR1")
    assert register(config(SONGS_PARTITION_BY=BY_ARTIST)) == 0
    aws.s3.put_object(Bucket=BUCKET, Key="new/songs/year=2000/artist_id=AR1/part-0.parquet", Body=b"")
    assert register(config(SONGS_PARTITION_BY=BY_ARTIST), "--output", "s3://lake/new") == 0
    assert partitions(aws) == {("2000", "AR1"): "s3://lake/new/songs/year=2000/artist_id=AR1/"}


def test_a_partition_that_glue_does_not_take_is_told(
    aws: catalog.Aws, config: Callable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = {"PartitionValues": ["2000", "AR1"], "ErrorDetail": {"ErrorMessage": "too many partitions"}}
    monkeypatch.setattr(aws.glue, "batch_create_partition", lambda **_: {"Errors": [failure]})
    put_songs(aws, "year=2000/artist_id=AR1")
    assert register(config(SONGS_PARTITION_BY=BY_ARTIST)) == 1
    assert "sparkify.songs: 2000/AR1: too many partitions" in caplog.messages[-1]


def test_the_catalogue_policy_allows_what_registering_asks_for_and_no_more(
    aws: catalog.Aws, asked: list[str], config: Callable
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


@pytest.mark.parametrize("option", [(), ("--register",)], ids=["ddl", "register"])
@pytest.mark.parametrize(
    "wrong, told",
    [({"OUTPUT": "output"}, "[LAKE] OUTPUT = 'output'"), ({"ENDPOINT": "http://127.0.0.1:9000"}, "[LAKE] ENDPOINT")],
    ids=["local", "not Amazon's"],
)
def test_a_lake_that_athena_cannot_read_is_one_line_and_exit_2(
    config: Callable, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture, option: tuple, wrong, told
) -> None:
    assert catalog.main(["--config", config(**wrong), *option]) == 2
    assert [told in each and "\n" not in each for each in caplog.messages] == [True]
    assert capsys.readouterr().out == ""


def test_a_database_name_that_athena_would_refuse_is_exit_2(config: Callable, caplog: pytest.LogCaptureFixture) -> None:
    assert catalog.main(["--config", config(), "--database", "My-Lake"]) == 2
    assert "--database 'My-Lake'" in caplog.text


def test_no_region_is_exit_2(config: Callable, caplog: pytest.LogCaptureFixture) -> None:
    assert register(config(REGION="")) == 2
    assert "[LAKE] REGION" in caplog.text


def test_a_refusal_of_glue_is_one_line_with_the_remedy_and_exit_1(
    aws: catalog.Aws, config: Callable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "not authorized"}}, "GetDatabase")

    monkeypatch.setattr(aws.glue, "get_database", refuse)
    assert register(config()) == 1
    [line] = caplog.messages
    assert line.startswith("Glue: access denied") and "see iam/" in line and "\n" not in line
    assert "canary-secret" not in caplog.text
