"""The oracle itself, seen right on rows worked out by hand."""

import gzip
import json
from datetime import datetime
from pathlib import Path

import pytest
from oracle import five_tables, rejected_lines, songplay_id, usable_lines

# 1541121934796 ms is Friday 2018-11-02 01:25:34.796 UTC, ISO week 44.
EVENT = {
    "artist": "Tide",
    "auth": "Logged In",
    "firstName": "Ada",
    "gender": "F",
    "itemInSession": 3,
    "lastName": "Fen",
    "length": 200.5,
    "level": "free",
    "location": "Elm, OR",
    "method": "PUT",
    "page": "NextSong",
    "registration": 1540000000000.0,
    "sessionId": 9,
    "song": "Low",
    "status": 200,
    "ts": 1541121934796,
    "userAgent": "Fox",
    "userId": "7",
}
SONG = {
    "num_songs": 1,
    "artist_id": "AR1",
    "artist_latitude": 1.5,
    "artist_longitude": None,
    "artist_location": "Bay",
    "artist_name": "Tide",
    "song_id": "SO1",
    "title": "Low",
    "duration": 200.5,
    "year": 2001,
}


def event(**overrides: object) -> dict:
    return {**EVENT, **overrides}


def song(**overrides: object) -> dict:
    return {**SONG, **overrides}


@pytest.fixture
def lake(tmp_path: Path):
    """A function that writes events and songs, as objects or as raw lines, and gives the input folder."""

    def write(events: list = (), songs: list = ()) -> str:
        for kind, rows in (("log", events), ("song", songs)):
            folder = tmp_path / f"{kind}_data"
            folder.mkdir(exist_ok=True)
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (folder / "one.json").write_text("\n".join(lines), encoding="utf-8")
        return str(tmp_path)

    return write


def test_one_play_of_one_song_gives_one_row_in_each_table(lake):
    start = datetime(2018, 11, 2, 1, 25, 34, 796000)
    assert five_tables(lake([event()], [song()])) == {
        "songplays": [
            (-1930327862884752126, start, 7, "free", "SO1", "AR1", 9, "Elm, OR", "Fox", "Low", "Tide", 200.5, 2018, 11)
        ],
        "users": [(7, "Ada", "Fen", "F", "free")],
        "songs": [("SO1", "Low", "AR1", 200.5, 2001)],
        "artists": [("AR1", "Tide", "Bay", 1.5, None)],
        "time": [(start, 1, 2, 44, 6, 2018, 11)],
    }


def test_by_day_a_play_has_the_day_of_its_start_in_utc_as_well(lake):
    days = [row[-3:] for row in five_tables(lake([event(), event(ts=1541203199999)]), by_day=True)["songplays"]]
    assert days == [(2018, 11, 2), (2018, 11, 2)]


def test_no_input_gives_five_empty_tables(lake):
    assert five_tables(lake()) == {"songplays": [], "users": [], "songs": [], "artists": [], "time": []}


def test_songplay_id_is_the_chained_hash():
    assert songplay_id(0, 0, 0, 0) == 2884602906196492247  # what Spark 4.0.2 gives for xxhash64
    assert songplay_id(1541121934796, 101, -7, 2**63 - 1) == -1000332621618649064


def matches(lake, events: list, songs: list) -> list:
    """(item, song_id, artist_id) of each play."""
    rows = five_tables(
        lake([event(itemInSession=n, ts=EVENT["ts"] + n, **changes) for n, changes in enumerate(events)], songs)
    )["songplays"]
    return [(song_id, artist_id) for _, song_id, artist_id in sorted((row[1], row[4], row[5]) for row in rows)]


def test_a_play_matches_on_title_artist_and_duration_to_five_decimals(lake):
    songs = [song(), song(song_id="SO0", artist_name=None), song(song_id="SO9", title="High", duration=200.500004)]
    same = [{}, {"length": 200.500004}, {"length": 200.499996}]
    others = [{"length": 200.50001}, {"song": "low"}, {"artist": "Tide "}, {"length": None}, {"artist": None}]
    assert matches(lake, [*same, *others], songs) == [("SO1", "AR1")] * 3 + [(None, None)] * 5
    assert matches(lake, [{"song": "High"}, {"song": "High", "length": 201}], songs) == [("SO9", "AR1"), (None, None)]


def test_the_smallest_of_several_matching_songs_wins_with_its_artist(lake):
    songs = [song(song_id="SO3"), song(song_id="SO2", artist_id=" "), song(song_id="SOx", artist_id="AR0")]
    assert matches(lake, [{}], songs) == [("SO2", None)]


def test_a_song_version_that_lost_matches_no_play(lake):
    songs = [song(), song(title="High", year=2002)]
    assert matches(lake, [{}, {"song": "High"}], songs) == [(None, None), ("SO1", "AR1")]


def test_a_song_version_that_lost_gives_an_artist_nothing(lake):
    songs = [song(artist_location="Bay"), song(year=2002, artist_location=None), song(artist_id="AR9")]
    assert five_tables(lake([], songs))["artists"] == [("AR1", "Tide", None, 1.5, None)]


def test_the_greatest_copy_of_a_play_wins_column_after_column(lake):
    copies = [
        event(level="free", location="Zed"),
        event(level="paid", location=None, userAgent="Z", userId=" 07 "),
        event(level="paid", location="", userAgent="Fox", userId=7),
        event(level=None, location="Zed"),
    ]
    assert [row[2:9] for row in five_tables(lake(copies))["songplays"]] == [(7, "paid", None, None, 9, "", "Fox")]


def test_the_greatest_song_version_wins_and_strings_compare_by_bytes(lake):
    versions = [
        song(title="é"),
        song(title="z"),
        song(title=None),
        song(duration=None, title="𝄞"),
        song(year=None, duration=999),
    ]
    assert five_tables(lake([], versions))["songs"] == [("SO1", "é", "AR1", 200.5, 2001)]


def test_an_unknown_year_is_0(lake):
    songs = [song(song_id="SO1", year=None), song(song_id="SO2", year=0), song(song_id="SO3")]
    songs[2].pop("year")
    assert [row[4] for row in five_tables(lake([], songs))["songs"]] == [0, 0, 0]


def test_an_artist_has_the_latest_known_name_and_the_place_of_the_latest_song_that_has_one(lake):
    songs = [
        song(song_id="SO0", year=0, artist_name="Never", artist_location="Sea", artist_latitude=9),
        song(song_id="SO1", year=1990, artist_name="Old", artist_latitude=3, artist_longitude=4),
        song(song_id="SO2", year=1999, artist_name="New", artist_location="Ely", artist_latitude=7),
        song(
            song_id="SO3",
            year=1999,
            artist_name="Newest ",
            artist_location=" \t",
            artist_latitude=None,
            artist_longitude=5,
        ),
        song(song_id="SO4", year=2005, artist_name="", artist_location="", artist_latitude=None),
        song(song_id="SO5", year=1980, artist_name="Older", artist_location="Rio", artist_latitude=2),
        song(song_id="SO6", artist_id=""),
        song(song_id="SO7", artist_id="AR2", artist_name=" ", artist_location="", artist_latitude=None),
    ]
    assert five_tables(lake([], songs))["artists"] == [
        ("AR1", "Newest ", None, None, 5.0),
        ("AR2", None, None, None, None),
    ]


def test_each_value_of_a_user_is_the_latest_known_on_any_page(lake):
    ts = EVENT["ts"]
    events = [
        event(ts=ts + 2, page="Home", itemInSession=0, firstName="Eve", lastName=None, level="paid"),
        event(ts=ts + 2, page="Help", itemInSession=None, firstName=" ", lastName="", gender="", level="free"),
        event(ts=ts + 1, page="About", firstName="Zoe", lastName="Old", level="none"),
        event(userId="", page="Home", level="blank"),
        event(userId=8, page="Home", level=None),
    ]
    assert five_tables(lake(events))["users"] == [(7, "Eve", "Old", "F", "paid"), (8, "Ada", "Fen", "F", None)]


def test_items_of_a_user_tie_below_zero_and_above_the_cap(lake):
    events = [
        event(page="Home", userId=user, itemInSession=item, level=level)
        for user, item, level in (
            ("1", -5, "b"),
            ("1", None, "a"),
            ("2", 2097151, "b"),
            ("2", 2**40, "a"),
            ("3", 2097150, "b"),
            ("3", 2097151, "a"),
        )
    ]
    assert [row[0::4] for row in five_tables(lake(events))["users"]] == [(1, "b"), (2, "b"), (3, "a")]


def test_time_has_one_row_for_each_start_of_a_play(lake):
    ts = 1546300799999  # the last millisecond of 2018, a Monday in week 1 of 2019
    events = [
        event(ts=ts),
        event(ts=ts, userId="8"),
        event(ts=ts + 1),
        event(ts=ts + 2, page="Home"),
        event(ts=ts + 5 * 86_400_000),
    ]
    assert five_tables(lake(events))["time"] == [
        (datetime(2018, 12, 31, 23, 59, 59, 999000), 23, 31, 1, 2, 2018, 12),
        (datetime(2019, 1, 1), 0, 1, 1, 3, 2019, 1),
        (datetime(2019, 1, 5, 23, 59, 59, 999000), 23, 5, 1, 7, 2019, 1),
    ]


TEXT = json.dumps(EVENT)


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        *(
            ("broken JSON", line)
            for line in (
                TEXT[:-1],
                TEXT + "x",
                TEXT + TEXT,
                f"[{TEXT}]",
                "null",
                '"x"',
                "7",
                "{",
                TEXT.replace("200.5", "NaN"),
                TEXT.replace("200.5", "-Infinity"),
                TEXT.replace("Low", "L\tw"),
            )
        ),
        *(
            (f"wrong type: {key}", event(**{key: value}))
            for key, value in (
                ("ts", "1541121934796"),
                ("ts", 1541121934796.5),
                ("ts", 2**63),
                ("sessionId", "9"),
                ("sessionId", 1e300),
                ("sessionId", -(2**63) - 1),
                ("itemInSession", 3.1),
                ("itemInSession", True),
                ("itemInSession", 2**70),
                ("itemInSession", 9007199254740992.0),
                ("length", "200.5"),
                ("length", False),
            )
        ),
        ("wrong type: length", event(length="", page=None)),
        ("wrong type: ts", event(ts="", sessionId="", itemInSession="", length="")),
        ("key in the wrong case", TEXT.replace('"level"', '"Level"')),
        ("key in the wrong case", TEXT.replace('"level":', '"Level"\t:')),
        ("no page", event(page=None, ts=None)),
        ("no page", TEXT.replace('"page"', '"Page"')),
        ("no time", event(ts=None, userId=None)),
        ("no time", TEXT.replace('"ts"', '"TS"')),
        *(
            ("impossible time", event(ts=ts, userId=None))
            for ts in (-1, 1541121934, 946684799999, 4102444800000, 2**63 - 1)
        ),
        ("no user id", event(userId=None, sessionId=None)),
        *(
            ("user id is not a number", event(userId=user, sessionId=None))
            for user in ("x", "-7", "+7", "7.", 7.5, True, "7.0.0", "1" * 19, "٣", "7 7", "\t7")
        ),
        *(("play without a user", event(userId=user, sessionId=None)) for user in ("", "  ")),
        ("play without a session", event(sessionId=None, itemInSession=None)),
        ("play without an item", event(itemInSession=None)),
    ],
)
def test_an_unusable_event_is_rejected_for_the_first_reason(lake, reason, bad):
    folder = lake([bad, event()])
    assert rejected_lines(folder) == {("log", reason): 1}
    assert usable_lines(folder) == {"log": 1, "song": 0}


@pytest.mark.parametrize(
    "good",
    [
        event(ts=946684800000),
        event(ts=4102444799999),
        event(userId=7),
        event(userId=" 007 "),
        event(userId="9" * 18),
        event(sessionId=-(2**63), itemInSession=2**63 - 1),
        event(length=200),
        event(length=None),
        event(song=1999, artist=True),
        event(ts=1541121934796.0, sessionId=9.0, itemInSession=-0.0, userId=7.0),
        event(userId="7.00"),
        TEXT.replace("1541121934796", "1.541121934796E12"),
        event(sessionId=2**53 - 1.0),
        event(page="Home", userId="", sessionId=None, itemInSession=None),
        event(page="", userId=" "),
        event(page=7),
        event(new={"nested": [1], "Level": 1}),
        event(level=None, new={"Level": "free"}),
        event(Level="paid"),
        f" \t{TEXT} ",
        TEXT.replace("Low", "L\u2028\u0085\u00a0w"),
    ],
)
def test_an_awkward_event_is_usable(lake, good):
    folder = lake([good])
    assert (rejected_lines(folder), usable_lines(folder)) == ({}, {"log": 1, "song": 0})


def test_numbers_as_strings_are_taken_as_their_text(lake):
    folder = lake([event(song=1999, artist=True, level=1.5)], [song(title="1999", artist_name="true")])
    assert [row[3:5] for row in five_tables(folder)["songplays"]] == [("1.5", "SO1")]


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("broken JSON", json.dumps(SONG)[:-1]),
        *(
            (f"wrong type: {key}", song(song_id=None, **{key: value}))
            for key, value in (
                ("year", "2001"),
                ("year", 2001.5),
                ("year", 2**31),
                ("year", False),
                ("duration", "200.5"),
                ("duration", True),
                ("artist_latitude", "1"),
                ("artist_longitude", ""),
            )
        ),
        *(("no song id", song(song_id=song_id, year=-1)) for song_id in (None, "", "  ", " \t")),
        *(("impossible year", song(year=year)) for year in (-1, 2100, 20180, -1.0)),
    ],
)
def test_an_unusable_song_is_rejected_for_the_first_reason(lake, reason, bad):
    folder = lake([], [bad, song()])
    assert rejected_lines(folder) == {("song", reason): 1}
    assert usable_lines(folder) == {"log": 0, "song": 1}


@pytest.mark.parametrize(("year", "read"), [(0, 0), (2099, 2099), (1999.0, 1999), (2.001e3, 2001), (None, 0)])
def test_a_year_from_0_to_2099_is_usable(lake, year, read):
    assert [row[4] for row in five_tables(lake([], [song(year=year)]))["songs"]] == [read]


def test_lines_are_read_from_every_kind_of_file(lake, tmp_path):
    folder, logs = lake([event()]), tmp_path / "log_data" / "2018" / "11"
    logs.mkdir(parents=True)

    def another(user: int) -> bytes:
        return json.dumps(event(userId=str(user))).encode()

    (logs / "bom and crlf.json").write_bytes(b"\xef\xbb\xbf" + another(1) + b"\r\n\r\n \t\r\n" + another(2) + b"\r\n")
    (logs / "joined.json").write_bytes(another(9) + b"\n\xef\xbb\xbf" + another(10) + b"\n\xef\xbb\xbf\n")
    (logs / "mac.json").write_bytes(another(3) + b"\r" + another(4))
    (logs / "packed.json.gz").write_bytes(gzip.compress(another(5) + b"\n"))
    (logs / "not utf-8.json").write_bytes(another(8).replace(b"Fox", b"F\xff"))
    for unread in ("_part.json", ".part.json", "part.json.bak", "_old/part.json", ".old/deep/part.json"):
        (logs / unread).parent.mkdir(parents=True, exist_ok=True)
        (logs / unread).write_bytes(another(6))
    assert [row[0] for row in five_tables(folder)["users"]] == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    assert rejected_lines(folder) == {}
