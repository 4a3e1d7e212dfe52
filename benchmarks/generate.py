#!/usr/bin/env python3
"""Make up a music service's lake: song files and event logs like the real ones, of any size, clean or dirty.

    python benchmarks/generate.py /tmp/lake                    560 events, 60 songs, 14 days
    python benchmarks/generate.py /tmp/other --seed 2          the same kind of lake, other content
    python benchmarks/generate.py /tmp/big --scale 7000 --songs 5000 --days 365    4 million events, 2 GB of logs
    python benchmarks/generate.py /tmp/bad --dirty             with what a lake should not hold, and sometimes does

The same arguments give the same bytes. generate.sql makes the rows, and this script the files:

    OUT/log_data/2018/11/2018-11-01-events.json     one file a UTC day, one event a line, in the order of time
    OUT/song_data/A/B/C/TRABCAA128F000002A.json     one song a file
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import tempfile
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from random import Random

import duckdb

DAY = 86_400_000  # milliseconds

# A clean lake


def made_up(options: argparse.Namespace, spill: str) -> duckdb.DuckDBPyConnection:
    """A database in memory with the tables of generate.sql; what does not fit goes to the directory `spill`."""
    db = duckdb.connect(config={"temp_directory": spill})
    sizes = {"seed": options.seed, "events": options.events * options.scale, "songs": options.songs}
    for name, value in {**sizes, "days": options.days, "first": midnight(options.start)}.items():
        db.execute(f"SET VARIABLE {name} = {value}::BIGINT")
    db.execute(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
    return db


def midnight(day: date) -> int:
    """The epoch milliseconds at which the day begins in UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp()) * 1000


def write_songs(db: duckdb.DuckDBPyConnection, out: Path) -> list[dict]:
    """Writes a file for each song, 24 to a directory. Returns the songs."""
    rows = db.execute("SELECT * EXCLUDE (n) FROM song ORDER BY n")
    songs = [dict(zip((column[0] for column in rows.description), row, strict=True)) for row in rows.fetchall()]
    for number, song in enumerate(songs):
        a, b, c = (chr(65 + number // 24 // 26**power % 26) for power in (2, 1, 0))
        write(out / "song_data" / a / b / c / f"TR{a}{b}{c}AA128F{number:07X}.json", json.dumps(song))
    return songs


def write_logs(db: duckdb.DuckDBPyConnection, out: Path, start: date, days: int) -> list[Path]:
    """Writes a file for each day. Returns the files."""
    logs = [out / "log_data" / f"{start + timedelta(days=n):%Y/%m/%Y-%m-%d}-events.json" for n in range(days)]
    for number, path in enumerate(logs):
        path.parent.mkdir(parents=True, exist_ok=True)
        begin, name = midnight(start) + number * DAY, str(path).replace("'", "''")
        rows = f'FROM line WHERE ts BETWEEN {begin} AND {begin + DAY - 1} ORDER BY ts, "sessionId", "itemInSession"'
        db.execute(f"COPY ({rows}) TO '{name}' (FORMAT json)")
    return logs


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


# Dirt: every day gets every kind once, each made from one of the day's own plays

ABSENT = object()  # as a value: the key is left out


def each(**values: tuple) -> list[dict]:
    """each(page=(None, 7)) -> [{"page": None}, {"page": 7}]"""
    return [{key: value} for key in values for value in values[key]]


WRONG_CASE = ("ts", "page", "userId", "sessionId", "itemInSession", "level", "firstName", "artist", "song", "length")
EVENT_CHANGES = (
    *each(
        ts=("1541016707796", 1541016707796.0, 2**70, 2**63, True, ABSENT, None, 1541016707, 0, -1, 946684799999,
            946684800000, 4102444799999, 4102444800000, 2**62, 1546300799999),
        userId=(ABSENT, None, "abc", "12a", "-5", "4 2", "1" * 19, 10**18, "٣", 39.5, 39.0, True, "", "   ", 39, " 39 ",
                "0039", "9" * 18, "0"),
        sessionId=("12", 12.0, 12.5, 2**63, 2**63 - 1, -(2**63) - 1, -7, ABSENT, None),
        itemInSession=("3", 3.5, 2**70, 2**40, -1, False, ABSENT, None),
        length=("200.5", True, "", None, 200, 2e2, 0, 1e300), page=(ABSENT, None, "nextsong", "NextSong ", "", 7),
        song=(1999, True, "", "next\u0085line\u2028here", "tab\there\nand there"), artist=(311, 1.5, None),
        location=("", "  ", " \t ", ABSENT), level=(None, ""), gender=(None,), userAgent=(None,), firstName=(7,),
        registration=("soon",), extra=({"nested": [1, "NextSong"]},), profile=({"Gender": "F"},),
    ),
    *({"page": "Home", **other} for other in each(sessionId=(None,), itemInSession=(None,), userId=("", "  ", "x"))),
    {"firstName": " ", "lastName": ""}, {"gender": None, "profile": {"Gender": "F"}}, {"page": None, "ts": None},
    {"ts": "now", "page": None, "userId": None}, {"ts": None, "userId": None},
    {"sessionId": None, "itemInSession": None},
)  # fmt: skip
OTHER_COPIES = (  # the same play once more, with another column different
    {}, *each(level=(None, "trial"), location=(None, "Zz"), userAgent=(None, ""), artist=("Éa",), song=(None, "zz"),
              length=(None, 999.5)),
)  # fmt: skip
SONG_CHANGES = (
    {}, *each(
        title=("A Later Title", None, 1999, "Next\u0085line\u2028here"), num_songs=("one",),
        year=(2017, 0, None, ABSENT, -1, 20180, 2**31 - 1, 2**31, 2**70, "2001", 2001.0, 2001.5, True),
        duration=(1.5, None, 215, "200.1", False), artist_id=("", "   ", None, 17), artist_name=("",),
        artist_location=("\t",), artist_latitude=(51, "51.5"), artist_longitude=("-0.1", True),
        song_id=(17, "", "  ", None, ABSENT),
    ),
    {"artist_name": " ", "year": 2008}, {"artist_name": None, "artist_location": None, "year": 2009},
    {"artist_latitude": 0.0, "artist_longitude": -0.5}, {"song_id": None, "year": "x"},
    {"title": ABSENT, "Title": "In the wrong case"},
)  # fmt: skip


def changed(line: str, changes: dict) -> str:
    """The line with the values changed, or left out where ABSENT."""
    values = {key: value for key, value in {**json.loads(line), **changes}.items() if value is not ABSENT}
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def broken(line: str) -> list[str]:
    """What is made of the line is not one JSON object, or has a number that no column holds."""
    numbers = (re.sub(r'"(length|duration)": ?[\d.]+', rf'"\1":{text}', line) for text in ("NaN", "0200", "1e400"))
    others = ("// a comment", '"NextSong"', "1541016707796", "null", "{", line[:-1] + ",}", f"[{line}]", line[:-40])
    longer = (line + line, f"{line} {line}", line + " x", line + "}", line.replace('"', "'"), line.replace("S", "S\t"))
    return [*numbers, *others, *longer]


def dirty_events(plays: list[str]) -> list[str]:
    """One line of every kind of dirt, made from the plays in turn."""
    base = [plays[n % len(plays)] for n in range(len(EVENT_CHANGES))]
    return [
        *broken(base[0]),
        *(line.replace(f'"{key}"', f'"{key.swapcase()}"') for key, line in zip(WRONG_CASE, base, strict=False)),
        *(changed(base[n], {"itemInSession": 1000 + n, **changes}) for n, changes in enumerate(EVENT_CHANGES)),
        *(changed(line, changes) for changes, line in zip(OTHER_COPIES, base, strict=False)),
        base[0], base[1].replace('"userId":"', '"userId":" 00'), f" \t{base[2]} ", "\ufeff" + base[3], "", "   ", "\t",
        json.dumps(dict(reversed(json.loads(base[4]).items()))),
    ]  # fmt: skip


def make_dirty_day(path: Path, rng: Random, kind: int) -> None:
    """Mixes dirt into the file. It lies, by kind, under two names, has a BOM and CRLF, is gzipped, or has only CR."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    plays = [line for line in lines if '"page":"NextSong"' in line]
    for line in dirty_events(plays) if plays else []:
        lines.insert(rng.randrange(len(lines) + 1), line)
    text = "\n".join(lines) + "\n"
    path.unlink()
    if kind == 0:
        write(path, text)
        write(path.with_name(f"{path.stem}-again.json"), text)
    elif kind == 1:
        write(path, "\ufeff" + text.replace("\n", "\r\n"))
    elif kind == 2:
        write(path.with_name(f"{path.name}.gz"), gzip.compress(text.encode(), mtime=0))
    else:
        write(path, text.replace("\n", "\r"))


def write_dirty_songs(folder: Path, songs: list[dict]) -> None:
    """Files of many songs, other versions of songs, broken lines."""
    lines = [json.dumps(song) for song in songs]
    versions = [changed(lines[n % len(lines)], changes) for n, changes in enumerate(SONG_CHANGES)]
    nudged = [json.dumps({**song, "duration": song["duration"] + 0.000001}) for song in songs[::3]]
    write(folder / "many.json", "\ufeff" + "\r\n".join(["", *versions[::2], "  ", *broken(lines[0]), ""]))
    write(folder / "more" / "many.json.gz", gzip.compress("\n".join([*versions, *nudged]).encode(), mtime=0))
    write(folder / "more" / "one line.json", lines[0] + lines[-1])
    write(folder / "empty.json", "")


def write_unread(out: Path, song: dict) -> None:
    """What no reader may count: hidden files and directories, and files that are no JSON by their name."""
    ghost = json.dumps({**song, "song_id": "SOGHOST", "artist_id": "ARGHOST"})
    for name in ("_temporary/0/part.json", ".hidden.json", "_SUCCESS.json", "A/.cache/ghost.json", "notes.txt",
                 "old.json.bak"):  # fmt: skip
        write(out / "song_data" / name, ghost)
    for name in ("_temporary/0/part.json", ".hidden.json", "2018/_old/events.json"):
        write(out / "log_data" / name, "{broken")


# The command line


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="directory for song_data/ and log_data/: new or empty")
    parser.add_argument("--seed", type=int, default=1, help="another seed, another lake (default 1)")
    parser.add_argument("--events", type=int, default=560, help="log lines, 500 bytes each (default 560)")
    parser.add_argument("--scale", type=int, default=1, help="multiply --events (default 1)")
    parser.add_argument("--songs", type=int, default=60, help="songs, a file each (default 60)")
    parser.add_argument("--days", type=int, default=14, help="days, a log file each (default 14)")
    parser.add_argument("--start", type=date.fromisoformat, default=date(2018, 10, 25), metavar="DATE",
                        help="first day, in UTC (default 2018-10-25)")  # fmt: skip
    parser.add_argument("--dirty", action="store_true", help="add bad and awkward lines of every kind to each day")
    options = parser.parse_args(argv)
    if options.out.is_dir() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty: name a new directory, or remove what is in it")
    return options


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    with tempfile.TemporaryDirectory() as spill, made_up(options, spill) as db:
        songs = write_songs(db, options.out)
        logs = write_logs(db, options.out, options.start, options.days)
    if options.dirty:
        for number, path in enumerate(logs):
            make_dirty_day(path, Random(f"{options.seed} {number}"), number % 4)
        write_dirty_songs(options.out / "song_data", songs)
        write_unread(options.out, songs[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
