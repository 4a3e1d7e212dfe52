"""What each table means, rule by rule, on rows that state only what the rule is about."""

from __future__ import annotations

import struct
from datetime import datetime

import pytest
import xxhash
from conftest import Tables, epoch_ms, event, play_of, song

import etl


def column(rows: list[tuple], table: str, name: str) -> list:
    return [row[etl.TABLES[table].names().index(name)] for row in rows]


def columns(rows: list[tuple], table: str, *names: str) -> list[tuple]:
    return list(zip(*(column(rows, table, name) for name in names), strict=True))


# songplays ---------------------------------------------------------------------------------------------------------


def test_a_play_has_its_song_when_title_artist_and_duration_agree(table: Tables) -> None:
    plays = table("songplays", songs=[song(song_id="SO5", artist_id="AR5")], events=[play_of(song())])
    assert columns(plays, "songplays", "song_id", "artist_id") == [("SO5", "AR5")]


def test_a_play_has_no_song_when_title_artist_or_duration_differs_or_is_missing(table: Tables) -> None:
    others = [{"song": "Slow river"}, {"artist": "Lanterns"}, {"length": 218.9318}, {"length": None}, {"artist": None}]
    plays = [play_of(song(), itemInSession=n, **other) for n, other in enumerate([{}, *others])]
    found = table("songplays", songs=[song(), song(song_id="SO2", artist_name=None)], events=plays)
    assert sorted(column(found, "songplays", "song_id"), key=str) == [None] * 5 + ["SO1"]


def test_durations_are_compared_to_five_decimals(table: Tables) -> None:
    plays = table("songplays", [song(duration=218.93179)], [play_of(song(), length=218.9317900000001)])
    assert column(plays, "songplays", "song_id") == ["SO1"]


def test_of_several_matching_songs_a_play_has_the_one_with_the_smallest_id(table: Tables) -> None:
    songs = [song(song_id=f"SO{n}", artist_id=artist_id) for n, artist_id in ((9, "AR9"), (2, "AR2"), (3, "AR1"))]
    plays = table("songplays", songs, [play_of(song())])
    assert columns(plays, "songplays", "song_id", "artist_id") == [("SO2", "AR2")]


def test_a_play_has_the_title_artist_and_length_that_the_app_logged_whether_the_song_is_known_or_not(
    table: Tables,
) -> None:
    logged = ("song_title", "artist_name", "song_length")
    close = play_of(song(), length=218.9317900000001)
    nothing = event(itemInSession=2, song=None, artist=None, length=None)
    plays = table("songplays", [song()], [close, event(itemInSession=1, song=" Odd ", artist="", length=0), nothing])
    found = dict(zip(columns(plays, "songplays", *logged), column(plays, "songplays", "song_id"), strict=True))
    assert found == {
        ("Slow River", "The Lanterns", 218.9317900000001): "SO1",
        (" Odd ", "", 0.0): None,
        (None, None, None): None,
    }


def test_only_next_song_is_a_play(table: Tables) -> None:
    events = [event(itemInSession=n, page=page) for n, page in enumerate(["NextSong", "Home", "nextsong", "Next Song"])]
    assert len(table("songplays", events=events)) == 1


def test_a_line_delivered_twice_counts_once(table: Tables) -> None:
    assert len(table("songplays", events=[event(), event(), event(itemInSession=1)])) == 2


@pytest.mark.parametrize("order", [1, -1], ids=["as delivered", "in reverse"])
def test_of_two_versions_of_a_play_the_greatest_wins_column_after_column(table: Tables, order: int) -> None:
    versions = [
        event(level="free", location="Z"),
        event(level="paid", location=None),
        event(level="paid", location="A", userAgent="A", artist="Z"),
        event(level="paid", location="A", userAgent="Z", artist="A", song="Z", length=1),
        event(level="paid", location="A", userAgent="Z", artist="A", song="Z", length=2),
        event(level="paid", location="A", userAgent="Z", artist="A", song="A", length=3),
    ]
    plays = table("songplays", events=versions[::order])
    facts = ("level", "location", "user_agent", "artist_name", "song_title", "song_length")
    assert columns(plays, "songplays", *facts) == [("paid", "A", "Z", "A", "Z", 2.0)]


def test_songplay_id_is_a_chained_xxh64_of_time_user_session_and_item(table: Tables) -> None:
    state = 42
    for number in (epoch_ms("2018-11-15T12:30:45.796"), 39, 7, 3):
        state = xxhash.xxh64_intdigest(struct.pack("<q", number), seed=state)
    expected = struct.unpack("<q", struct.pack("<Q", state))[0]
    assert column(table("songplays", events=[event(itemInSession=3)]), "songplays", "songplay_id") == [expected]


def test_plays_that_differ_in_time_user_session_or_item_are_different_plays(table: Tables) -> None:
    others = [{}, {"at": "2018-11-15T12:30:45.797"}, {"userId": "40"}, {"sessionId": 8}, {"itemInSession": 1}]
    plays = table("songplays", events=[event(**other) for other in others])
    assert len({*column(plays, "songplays", "songplay_id")}) == len(plays) == 5


def test_a_plays_facts_stand_in_their_columns(table: Tables) -> None:
    row = table("songplays", [song()], [play_of(song(), userId="8", sessionId=139, level="paid")])[0]
    assert row[1:] == (
        datetime(2018, 11, 15, 12, 30, 45, 796000), 8, "paid", "SO1", "AR1", 139,
        "Windham, ME", '"Mozilla/5.0 (X11; Linux x86_64)"', "Slow River", "The Lanterns", 218.93179, 2018, 11,
    )  # fmt: skip


def test_times_are_utc_with_milliseconds_up_to_the_edge_of_the_year(table: Tables) -> None:
    plays = table("songplays", events=[event(at="2018-12-31T23:59:59.999"), event(at="2019-01-01T00:00:00.000")])
    assert sorted(columns(plays, "songplays", "start_time", "year", "month")) == [
        (datetime(2018, 12, 31, 23, 59, 59, 999000), 2018, 12),
        (datetime(2019, 1, 1), 2019, 1),
    ]


def test_whole_numbers_written_with_a_point_or_an_exponent_are_the_same_numbers(table: Tables) -> None:
    as_floats = event(ts=float(epoch_ms("2018-11-15T12:30:45.796")), userId=39.0, sessionId=7.0, itemInSession=0.0)
    assert table("songplays", events=[event(), as_floats]) == table("songplays", events=[event()])
    assert column(table("songs", songs=[song(year=1999.0)]), "songs", "year") == [1999]


# users -------------------------------------------------------------------------------------------------------------


def test_users_have_the_level_of_their_latest_event(table: Tables) -> None:
    events = [event(at=f"2018-11-{day:02}", level=level) for day, level in ((3, "free"), (5, "paid"), (4, "free"))]
    assert table("users", events=events) == [(39, "Ada", "Quill", "F", "paid")]


def test_every_event_of_a_user_counts_not_only_plays(table: Tables) -> None:
    events = [
        event(level="free"),
        event(at="2018-11-16", page="Submit Upgrade", level="paid"),
        event(userId="2", page="Home"),
    ]
    assert columns(table("users", events=events), "users", "user_id", "level") == [(2, "free"), (39, "paid")]


@pytest.mark.parametrize("order", [1, -1], ids=["as delivered", "in reverse"])
def test_of_events_at_one_millisecond_the_later_in_the_session_is_the_latest(table: Tables, order: int) -> None:
    events = [
        event(itemInSession=9, level="paid"),
        event(itemInSession=10, level="free"),
        event(itemInSession=None, page="Home"),
    ]
    assert column(table("users", events=events[::order]), "users", "level") == ["free"]


@pytest.mark.parametrize("order", [1, -1], ids=["as delivered", "in reverse"])
def test_ties_between_events_are_broken_by_a_total_order(table: Tables, order: int) -> None:
    events = [event(sessionId=1, level="free", firstName="B"), event(sessionId=2, level="paid", firstName="A")]
    assert table("users", events=events[::order]) == [(39, "B", "Quill", "F", "paid")]


def test_events_with_a_blank_user_id_belong_to_nobody(table: Tables) -> None:
    logged_out = [event(userId=blank, page="Home", firstName=None, lastName=None, gender=None) for blank in ("", "  ")]
    assert column(table("users", events=[*logged_out, event()]), "users", "user_id") == [39]


def test_a_fact_that_is_blank_in_a_users_latest_event_is_the_latest_known(table: Tables) -> None:
    events = [event(level="paid", firstName="Ada"), event(at="2018-11-16", level=None, firstName=" ")]
    assert table("users", events=events) == [(39, "Ada", "Quill", "F", "paid")]


def test_a_user_id_may_be_padded_or_a_number_or_a_number_with_a_point(table: Tables) -> None:
    ids = [" 7 ", 8, 9.0, "10.00", " 007"]
    users = table("users", events=[event(userId=user_id, itemInSession=n) for n, user_id in enumerate(ids)])
    assert column(users, "users", "user_id") == [7, 8, 9, 10]


# songs and artists -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1], ids=["as delivered", "in reverse"])
def test_songs_have_one_row_per_song_id_and_the_greatest_version_wins(table: Tables, order: int) -> None:
    versions = [song(title=title, year=year) for title, year in (("B", 2001), ("A", 2003), ("C", 0), ("B", 2003))]
    assert table("songs", songs=versions[::order]) == [("SO1", "B", "AR1", 218.93179, 2003)]


def test_songs_without_an_id_are_no_songs(table: Tables) -> None:
    songs = [*(song(song_id=blank) for blank in ("", " ", "\t", None)), song()]
    assert column(table("songs", songs=songs), "songs", "song_id") == ["SO1"]


def test_a_song_whose_artist_has_no_id_is_a_song_and_makes_no_artist(table: Tables) -> None:
    songs = [song(song_id=f"SO{n}", artist_id=blank) for n, blank in enumerate(("", " ", "\t", None))]
    assert column(table("songs", songs=songs), "songs", "artist_id") == [None] * 4
    assert table("artists", songs=songs) == []


def test_an_unknown_year_is_0(table: Tables) -> None:
    assert column(table("songs", songs=[song(year=0), song(song_id="SO2", year=None)]), "songs", "year") == [0, 0]


def artists_of(table: Tables, *songs: dict) -> list[tuple]:
    """name, location, latitude and longitude of the artist, which do not depend on the songs' order."""
    (artist,) = table("artists", songs=songs)
    assert table("artists", songs=songs[::-1]) == [artist]
    return list(artist[1:])


def of_year(year: int, name: str, *place: object, song_id: str = "SO1") -> dict:
    location, latitude, longitude = place or (None, None, None)
    facts = {"artist_location": location, "artist_latitude": latitude, "artist_longitude": longitude}
    return song(song_id=f"{song_id}{year}", year=year, artist_name=name, **facts)


def test_an_artist_has_the_name_of_the_latest_song_that_has_one(table: Tables) -> None:
    songs = [of_year(1990, "Old"), of_year(2001, "New"), of_year(2003, " "), of_year(0, "Year unknown")]
    assert artists_of(table, *songs) == ["New", None, None, None]


def test_an_artists_place_is_never_mixed_from_two_songs(table: Tables) -> None:
    paris, lima = of_year(1999, "A", "Paris", 48.8, 2.3), of_year(2015, "A", "Lima", None, None)
    assert artists_of(table, paris, lima) == ["A", "Lima", None, None]
    latitude, longitude = of_year(1999, "A", "", 48.8, None), of_year(2015, "A", None, None, 2.3)
    assert artists_of(table, latitude, longitude) == ["A", None, None, 2.3]


def test_an_artists_place_is_that_of_the_latest_song_that_has_a_location_a_latitude_or_a_longitude(
    table: Tables,
) -> None:
    nowhere, unknown_year = of_year(2015, "New", " ", None, None), of_year(0, "Unknown", "Elsewhere", 3.0, 4.0)
    assert artists_of(table, of_year(1999, "Old", "Paris", 48.8, 2.3), nowhere, unknown_year) == [
        "New", "Paris", 48.8, 2.3,
    ]  # fmt: skip


def test_of_two_songs_of_one_year_the_one_with_the_greater_id_is_the_later(table: Tables) -> None:
    songs = [of_year(1999, "A", "Ayr", 1.0, None, song_id="SO2"), of_year(1999, "Z", "Zug", 2.0, None)]
    assert artists_of(table, *songs) == ["A", "Ayr", 1.0, None]


def test_an_artist_about_whom_nothing_is_known_is_a_row(table: Tables) -> None:
    nothing = {"artist_name": None, "artist_location": " ", "artist_latitude": None, "artist_longitude": None}
    assert artists_of(table, song(**nothing)) == [None] * 4


# time --------------------------------------------------------------------------------------------------------------


def test_time_has_the_hour_day_iso_week_and_weekday_of_utc(table: Tables) -> None:
    expected = {
        "2018-11-15T23:30:45.796": (23, 15, 46, 5),
        "2018-11-18T00:00:00.000": (0, 18, 46, 1),  # a Sunday: the first weekday, and the last day of ISO's week
        "2018-12-31T12:00:00.000": (12, 31, 1, 2),  # a Monday: the first ISO week of the next year
        "2016-02-29T08:00:00.001": (8, 29, 9, 2),
    }
    rows = table("time", events=[event(at=at) for at in expected])
    assert rows == sorted(
        (at := datetime.fromisoformat(text), *row, at.year, at.month) for text, row in expected.items()
    )


def test_time_has_one_row_per_start_time_of_a_play(table: Tables) -> None:
    events = [event(), event(userId="8"), event(at="2018-11-20", page="Home")]
    assert len(table("time", events=events)) == 1
