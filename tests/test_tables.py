"""What each table means, rule by rule, on rows that state only what the rule is about."""

from __future__ import annotations

import re
import struct
import zlib
from datetime import datetime

import pytest
import xxhash
from conftest import ROOT, Tables, epoch_ms, event, play_of, song

import etl


def column(rows: list[tuple], table: str, name: str) -> list:
    return [row[etl.TABLES[table].names().index(name)] for row in rows]


# songplays ---------------------------------------------------------------------------------------------------------


def test_a_play_has_its_song_when_title_artist_and_duration_agree(table: Tables) -> None:
    plays = table("songplays", songs=[song(song_id="SO5", artist_id="AR5")], events=[play_of(song())])
    assert column(plays, "songplays", "song_id") == ["SO5"]
    assert column(plays, "songplays", "artist_id") == ["AR5"]


@pytest.mark.parametrize("other", [{"song": "Slow river"}, {"artist": "Lanterns"}, {"length": 218.9318}])
def test_a_play_has_no_song_when_one_of_the_three_differs(table: Tables, other: dict) -> None:
    plays = table("songplays", songs=[song()], events=[play_of(song(), **other)])
    assert column(plays, "songplays", "song_id") == [None]


def test_plays_without_a_song_are_kept(table: Tables) -> None:
    events = [
        play_of(song(), itemInSession=0),
        event(itemInSession=1),
        event(itemInSession=2, song=None, artist=None, length=None),
    ]
    assert sorted(column(table("songplays", [song()], events), "songplays", "song_id"), key=str) == [None, None, "SO1"]


def test_durations_are_compared_to_five_decimals(table: Tables) -> None:
    plays = table("songplays", [song(duration=218.93179)], [play_of(song(), length=218.9317900000001)])
    assert column(plays, "songplays", "song_id") == ["SO1"]


def test_a_play_never_multiplies_and_the_smallest_song_id_wins(table: Tables) -> None:
    songs = [
        song(song_id="SO9", artist_id="AR9"),
        song(song_id="SO2", artist_id="AR2"),
        song(song_id="SO3", artist_id="AR1"),
    ]
    plays = table("songplays", songs, [play_of(song())])
    assert column(plays, "songplays", "song_id") == ["SO2"]
    assert column(plays, "songplays", "artist_id") == ["AR2"]


def test_only_next_song_is_a_play(table: Tables) -> None:
    events = [event(itemInSession=n, page=page) for n, page in enumerate(["NextSong", "Home", "nextsong", "Next Song"])]
    assert len(table("songplays", events=events)) == 1


def test_a_line_delivered_twice_counts_once(table: Tables) -> None:
    assert len(table("songplays", events=[event(), event(), event(itemInSession=1)])) == 2


def test_a_play_delivered_twice_in_two_versions_counts_once_and_the_greatest_wins(table: Tables) -> None:
    versions = [
        event(level="free", location="Z"),
        event(level="paid", location=None),
        event(level="paid", location="A"),
    ]
    for delivered in (versions, versions[::-1]):
        plays = table("songplays", events=delivered)
        assert column(plays, "songplays", "level") == ["paid"]
        assert column(plays, "songplays", "location") == ["A"]


def test_songplay_id_is_a_chained_xxh64_of_time_user_session_and_item(table: Tables) -> None:
    state = 42
    for number in (epoch_ms("2018-11-15T12:30:45.796"), 39, 7, 3):
        state = xxhash.xxh64_intdigest(struct.pack("<q", number), seed=state)
    expected = struct.unpack("<q", struct.pack("<Q", state))[0]
    assert column(table("songplays", events=[event(itemInSession=3)]), "songplays", "songplay_id") == [expected]


@pytest.mark.parametrize(
    "other", [{"at": "2018-11-15T12:30:45.797"}, {"userId": "40"}, {"sessionId": 8}, {"itemInSession": 1}]
)
def test_songplay_id_differs_when_a_part_of_the_key_differs(table: Tables, other: dict) -> None:
    assert len(set(column(table("songplays", events=[event(), event(**other)]), "songplays", "songplay_id"))) == 2


def test_a_plays_facts_stand_in_their_columns(table: Tables) -> None:
    row = table("songplays", [song()], [play_of(song(), userId="8", sessionId=139, level="paid")])[0]
    assert row[1:] == (
        datetime(2018, 11, 15, 12, 30, 45, 796000), 8, "paid", "SO1", "AR1", 139,
        "Windham, ME", '"Mozilla/5.0 (X11; Linux x86_64)"', 2018, 11,
    )  # fmt: skip


def test_times_are_utc_with_milliseconds_up_to_the_edge_of_the_year(table: Tables) -> None:
    plays = table("songplays", events=[event(at="2018-12-31T23:59:59.999"), event(at="2019-01-01T00:00:00.000")])
    times = zip(*(column(plays, "songplays", name) for name in ("start_time", "year", "month")), strict=True)
    assert sorted(times) == [(datetime(2018, 12, 31, 23, 59, 59, 999000), 2018, 12), (datetime(2019, 1, 1), 2019, 1)]


# users -------------------------------------------------------------------------------------------------------------


def test_users_keep_the_level_of_the_latest_event(table: Tables) -> None:
    events = [event(at=f"2018-11-{day:02}", level=level) for day, level in ((3, "free"), (5, "paid"), (4, "free"))]
    assert table("users", events=events) == [(39, "Ada", "Quill", "F", "paid")]


def test_every_event_of_a_user_counts_not_only_plays(table: Tables) -> None:
    events = [
        event(level="free"),
        event(at="2018-11-16", page="Submit Upgrade", level="paid"),
        event(userId="2", page="Home"),
    ]
    users = table("users", events=events)
    assert column(users, "users", "user_id") == [2, 39]
    assert column(users, "users", "level") == ["free", "paid"]


def test_of_events_at_one_millisecond_the_later_in_the_session_is_the_latest(table: Tables) -> None:
    events = [
        event(itemInSession=9, level="paid"),
        event(itemInSession=10, level="free"),
        event(itemInSession=None, page="Home"),
    ]
    for delivered in (events, events[::-1]):
        assert column(table("users", events=delivered), "users", "level") == ["free"]


def test_ties_between_events_are_broken_by_a_total_order(table: Tables) -> None:
    events = [event(sessionId=1, level="free", firstName="B"), event(sessionId=2, level="paid", firstName="A")]
    for delivered in (events, events[::-1]):
        assert table("users", events=delivered) == [(39, "B", "Quill", "F", "paid")]


@pytest.mark.parametrize("blank", ["", "  "])
def test_blank_user_ids_are_nobody(table: Tables, blank: str) -> None:
    logged_out = event(userId=blank, page="Home", firstName=None, lastName=None, gender=None)
    assert column(table("users", events=[logged_out, event()]), "users", "user_id") == [39]


def test_a_users_fact_that_the_latest_event_lacks_is_the_latest_known(table: Tables) -> None:
    events = [event(level="paid", firstName="Ada"), event(at="2018-11-16", level=None, firstName=" ")]
    assert table("users", events=events) == [(39, "Ada", "Quill", "F", "paid")]


def test_a_user_id_may_be_padded_or_a_number(table: Tables) -> None:
    assert column(table("users", events=[event(userId=" 7 "), event(userId=8)]), "users", "user_id") == [7, 8]


# songs and artists -------------------------------------------------------------------------------------------------


def test_songs_have_one_row_per_song_id_and_the_greatest_version_wins(table: Tables) -> None:
    versions = [
        song(title="B", year=2001),
        song(title="A", year=2003),
        song(title="C", year=0),
        song(title="B", year=2003),
    ]
    for delivered in (versions, versions[::-1]):
        assert table("songs", songs=delivered) == [("SO1", "B", "AR1", 218.93179, 2003)]


@pytest.mark.parametrize("blank", ["", " ", None])
def test_songs_without_an_id_are_dropped(table: Tables, blank: str | None) -> None:
    assert column(table("songs", songs=[song(song_id=blank), song()]), "songs", "song_id") == ["SO1"]


@pytest.mark.parametrize("blank", ["", " ", None])
def test_a_song_whose_artist_has_no_id_is_kept_and_makes_no_artist(table: Tables, blank: str | None) -> None:
    assert column(table("songs", songs=[song(artist_id=blank)]), "songs", "artist_id") == [None]
    assert table("artists", songs=[song(artist_id=blank)]) == []


def test_an_unknown_year_is_0(table: Tables) -> None:
    assert column(table("songs", songs=[song(year=0), song(song_id="SO2", year=None)]), "songs", "year") == [0, 0]


def test_an_artist_has_the_latest_songs_non_blank_values(table: Tables) -> None:
    songs = [
        song(
            song_id="SO1",
            year=1990,
            artist_name="Old",
            artist_location="Old Town",
            artist_latitude=1.0,
            artist_longitude=2.0,
        ),
        song(
            song_id="SO2", year=2001, artist_name="New", artist_location="", artist_latitude=None, artist_longitude=None
        ),
        song(
            song_id="SO3",
            year=0,
            artist_name="Unknown",
            artist_location="Nowhere",
            artist_latitude=3.0,
            artist_longitude=4.0,
        ),
    ]
    for delivered in (songs, songs[::-1]):
        assert table("artists", songs=delivered) == [("AR1", "New", "Old Town", 1.0, 2.0)]


def test_of_two_songs_of_one_year_the_greatest_song_id_tells_the_artist(table: Tables) -> None:
    songs = [song(song_id="SO2", artist_name="A"), song(song_id="SO1", artist_name="Z")]
    assert column(table("artists", songs=songs), "artists", "name") == ["A"]


def test_an_artist_about_whom_nothing_is_known_is_kept(table: Tables) -> None:
    nothing = {"artist_name": None, "artist_location": " ", "artist_latitude": None, "artist_longitude": None}
    assert table("artists", songs=[song(**nothing)]) == [("AR1", None, None, None, None)]


# time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "at, hour, day, week, weekday",
    [
        ("2018-11-15T23:30:45.796", 23, 15, 46, 5),
        ("2018-11-18T00:00:00.000", 0, 18, 46, 1),  # a Sunday: the first weekday, and the last day of ISO's week
        ("2018-12-31T12:00:00.000", 12, 31, 1, 2),  # a Monday: the first ISO week of the next year
        ("2016-02-29T08:00:00.001", 8, 29, 9, 2),
    ],
)
def test_time_tells_hour_day_iso_week_and_weekday(
    table: Tables, at: str, hour: int, day: int, week: int, weekday: int
) -> None:
    moment = datetime.fromisoformat(at)
    assert table("time", events=[event(at=at)]) == [(moment, hour, day, week, weekday, moment.year, moment.month)]


def test_time_has_one_row_per_start_time_and_only_those_of_plays(table: Tables) -> None:
    events = [event(), event(userId="8"), event(at="2018-11-20", page="Home")]
    assert len(table("time", events=events)) == 1


# Nights --------------------------------------------------------------------------------------------------------------


def test_who_changes_what_rows_mean_raises_its_number() -> None:
    """What decides about rows stands under two headings. Rows of yesterday's code and of today's must not be mixed."""
    parts = re.split("^# -{20,}\n# (.*)\n# -{20,}\n", (ROOT / "etl.py").read_text(), flags=re.M)
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    meaning = said["What the data is"] + said["What each table means: DataFrame in, DataFrame out"]
    found = (etl.MEANING, zlib.crc32(meaning.encode()))
    told = f"if the change makes other rows, raise MEANING in etl.py; in any case put {found[1]} here"
    assert found == (1, 2515117196), told
