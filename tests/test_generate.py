"""The sample in data/ and its generator: the same bytes every time, and everything in it that real data has."""

import gzip
import json
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

import oracle
import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"

EVENT_KEYS = ["artist", "auth", "firstName", "gender", "itemInSession", "lastName", "length", "level", "location",
              "method", "page", "registration", "sessionId", "song", "status", "ts", "userAgent", "userId"]
SONG_KEYS = ["num_songs", "artist_id", "artist_latitude", "artist_longitude", "artist_location", "artist_name",
             "song_id", "title", "duration", "year"]


def generate(out: Path, *args: str) -> Path:
    """Run the generator as a user would; gives OUT back."""
    subprocess.run([sys.executable, ROOT / "benchmarks" / "generate.py", out, *args], check=True)
    return out


def contents(folder: Path) -> dict:
    """{path below the folder: bytes} of all files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def songs() -> list:
    return [json.loads(path.read_text()) for path in sorted(DATA.glob("song_data/*/*/*/*.json"))]


@pytest.fixture(scope="module")
def events() -> list:
    """All events of data/ in the order of the files."""
    return [json.loads(line) for path in sorted(DATA.glob("log_data/**/*.json"))
            for line in path.read_text(encoding="utf-8").split("\n")]


@pytest.fixture(scope="module")
def plays(events: list) -> list:
    return [event for event in events if event["page"] == "NextSong"]


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("dirty"), "--dirty")


def day(event: dict) -> str:
    return f"{datetime.fromtimestamp(event['ts'] / 1000, timezone.utc):%Y-%m-%d}"


def song_key(song: dict) -> tuple:
    return song["title"], song["artist_name"], song["duration"]


def groups(rows: list, *keys: str) -> dict:
    """Rows by the values of the keys."""
    found = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(row)
    return found


# The same bytes


def test_the_sample_is_what_its_command_makes(tmp_path):
    assert contents(generate(tmp_path)) == contents(DATA)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    one, again, other = (generate(tmp_path / name, "--seed", seed, "--events", "300", "--songs", "30")
                         for name, seed in (("one", "7"), ("again", "7"), ("other", "8")))
    assert contents(one) == contents(again) != contents(other)


def test_dirt_is_the_same_every_time(dirty, tmp_path):
    assert contents(generate(tmp_path, "--dirty")) == contents(dirty)


def test_the_number_of_workers_does_not_show(tmp_path):
    one, three = (generate(tmp_path / n, "--scale", "100", "--days", "5", "--workers", n) for n in ("1", "3"))
    assert contents(one) == contents(three)


def test_the_number_of_lines_songs_and_days_is_as_asked_for(tmp_path):
    out = generate(tmp_path, "--events", "500", "--scale", "3", "--songs", "40", "--days", "3", "--start", "2020-02-28")
    logs = sorted(out.glob("log_data/**/*.json"))
    assert [str(path.relative_to(out)) for path in logs] == [
        "log_data/2020/02/2020-02-28-events.json", "log_data/2020/02/2020-02-29-events.json",
        "log_data/2020/03/2020-03-01-events.json"]
    assert sum(path.read_text(encoding="utf-8").count("\n") + 1 for path in logs) == 1500
    assert len(list(out.glob("song_data/?/?/?/TR*.json"))) == 40


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "generate.py", tmp_path],
                          check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n"), list(contents(tmp_path))) == (2, 1, ["mine.txt"])


# What the sample holds


def test_the_sample_is_small():
    sizes = [len(content) for content in contents(DATA).values()]
    assert sum(sizes) < 500_000
    assert len(sizes) < 100


def test_songs_have_the_keys_and_types_of_real_ones(songs):
    assert 60 <= len(songs) <= 80
    assert all(list(song) == SONG_KEYS for song in songs)
    assert len({song["song_id"] for song in songs}) == len(songs)
    assert {type(song["year"]) for song in songs} == {int}
    assert {type(song["duration"]) for song in songs} == {float}


def test_songs_lie_in_folders_by_the_letters_of_their_track():
    tracks = list(DATA.glob("song_data/*/*/*/*.json"))
    assert all(list(track.stem[2:5]) == list(track.parts[-4:-1]) for track in tracks)
    assert len({track.parent for track in tracks}) > 1


def test_events_have_the_keys_and_types_of_real_ones(events):
    assert 500 <= len(events) <= 700
    assert all(list(event) == EVENT_KEYS for event in events)
    assert {type(event[key]) for event in events for key in ("ts", "sessionId", "itemInSession", "status")} == {int}
    assert {type(event["userId"]) for event in events} == {str}
    assert {type(event["registration"]) for event in events} == {float, type(None)}


def test_events_are_filed_by_utc_day_in_time_order(events):
    logs = sorted(DATA.glob("log_data/**/*.json"))
    assert len(logs) == 14
    for path in logs:
        lines = path.read_text(encoding="utf-8").split("\n")
        assert path.name == f"{path.parts[-3]}-{path.parts[-2]}-{path.stem[8:10]}-events.json"
        assert {day(json.loads(line)) for line in lines} == {path.stem[:10]}
    assert [event["ts"] for event in events] == sorted(event["ts"] for event in events)


def test_items_count_up_through_each_session(events):
    for session in groups(events, "sessionId").values():
        assert [event["itemInSession"] for event in session] == list(range(len(session)))


def test_all_pages_are_visited_and_most_are_plays(events, plays):
    assert {event["page"] for event in events} == {
        "NextSong", "Home", "Login", "Logout", "Upgrade", "Submit Upgrade", "Downgrade", "Submit Downgrade", "Settings",
        "Save Settings", "Help", "About", "Error"}
    assert len(plays) > len(events) / 2
    assert all(event["song"] is None and event["length"] is None for event in events if event["page"] != "NextSong")


def test_sessions_run_over_midnight_and_a_month_end(events):
    spans = {tuple(sorted({day(event) for event in session})) for session in groups(events, "sessionId").values()}
    assert ("2018-10-31", "2018-11-01") in spans
    assert sum(len(days) == 2 for days in spans) > 5


def test_logged_out_events_have_a_blank_user_and_no_names(events):
    out = [event for event in events if event["auth"] == "Logged Out"]
    assert out
    assert {(event["userId"], event["firstName"], event["registration"], event["userAgent"]) for event in out} == {
        ("", None, None, None)}
    assert all(event["userId"] for event in events if event["auth"] == "Logged In")
    assert any({event["auth"] for event in session} == {"Logged Out", "Logged In"}
               for session in groups(events, "sessionId").values())


def test_levels_change_on_plays_and_on_other_pages(events):
    users = groups([event for event in events if event["userId"]], "userId").values()
    changes = [after for user in users for before, after in pairwise(user) if before["level"] != after["level"]]
    assert {event["page"] == "NextSong" for event in changes} == {True, False}
    assert {event["level"] for event in changes} == {"free", "paid"}


def test_some_events_of_a_user_share_their_millisecond(events):
    assert any(len(same) > 1 for (user, _), same in groups(events, "userId", "ts").items() if user)


def test_names_of_some_users_change_or_are_unknown_at_first(events):
    users = groups([event for event in events if event["userId"]], "userId").values()
    assert any(len({event["lastName"] for event in user}) > 1 for user in users)
    assert any({event["firstName"] is None for event in user} == {True, False} for user in users)


def test_a_minority_of_plays_is_of_known_songs(songs, plays):
    known = {song_key(song) for song in songs}
    matched = sum((play["song"], play["artist"], play["length"]) in known for play in plays)
    assert 0.05 < matched / len(plays) < 0.5


def test_some_plays_come_close_to_a_known_song(songs, plays):
    known = {song_key(song) for song in songs}
    by_others, of_other_length = {(title, length) for title, _, length in known}, {key[:2] for key in known}
    strange = [play for play in plays if (play["song"], play["artist"], play["length"]) not in known]
    assert any((play["song"], play["length"]) in by_others for play in strange)
    assert any((play["song"], play["artist"]) in of_other_length for play in strange)


def test_songs_share_titles_artists_and_durations(songs):
    assert any(len({song["artist_id"] for song in same}) > 1 for same in groups(songs, "title").values())
    assert any(len({song["duration"] for song in same}) > 1 for same in groups(songs, "title", "artist_name").values())
    assert any(len(same) > 1 for same in groups(songs, "title", "artist_name", "duration").values())


def test_a_play_matches_two_songs(songs, plays):
    known = Counter(map(song_key, songs))
    assert any(known[play["song"], play["artist"], play["length"]] > 1 for play in plays)


def test_an_artist_is_spelled_differently_over_the_years(songs):
    spellings = [{(song["artist_name"], song["artist_location"]) for song in same if song["year"]}
                 for same in groups(songs, "artist_id").values()]
    assert any(len({name for name, _ in spelling}) > 2 for spelling in spellings)
    assert any(len({place for _, place in spelling}) > 2 for spelling in spellings)


def test_unknown_years_and_places_occur(songs, events):
    assert any(song["year"] == 0 for song in songs)
    assert {"", None} <= {song["artist_location"] for song in songs}
    assert {"", None} <= {event["location"] for event in events if event["userId"]}
    assert {type(song["artist_latitude"]) for song in songs} == {float, type(None)}


@pytest.mark.parametrize("character", ['"', "'", "\\", "/", ",", "ü", "夜", "🎷"])
def test_awkward_characters_occur(songs, events, character):
    assert any(character in str(value) for song in songs for value in song.values())
    assert any(character in str(value) for event in events for value in event.values())


# Dirt


def test_dirt_breaks_every_rule(dirty):
    assert set(oracle.rejected_lines(dirty)) == {
        ("song", "broken JSON"), ("song", "wrong type"), ("song", "no song id"),
        *(("log", reason) for reason in (
            "broken JSON", "wrong type", "no page", "no time", "impossible time", "no user id", "user id is no number",
            "play without a user", "play without a session", "play without an item"))}


def test_dirt_comes_in_every_kind_of_file(dirty):
    files = contents(dirty / "log_data")
    assert any(content.startswith(b"\xef\xbb\xbf") and b"}\r\n{" in content for content in files.values())
    assert any(b"}\r{" in content and b"\n" not in content for content in files.values())
    assert any(gzip.decompress(files[name]).endswith(b"}\n") for name in files if name.endswith(".json.gz"))
    copies = Counter(path.read_bytes() for path in oracle.files(dirty / "log_data"))
    assert max(copies.values()) == 2, "a file delivered under two names"
    assert any(b"\n\n" in content for content in files.values())


def test_dirt_hides_files_that_nobody_may_read(dirty):
    for folder in (dirty / "song_data", dirty / "log_data"):
        assert set(oracle.files(folder)) < {path for path in folder.rglob("*.json*") if path.is_file()}


def test_dirt_keeps_the_clean_lines(dirty):
    clean = {line for path in DATA.glob("log_data/**/*.json") for line in oracle.lines(path)}
    assert clean <= {line for path in oracle.files(dirty / "log_data") for line in oracle.lines(path)}


def test_dirt_holds_plays_and_songs_in_competing_copies(dirty):
    songs, events = ([json.loads(line) for path in oracle.files(dirty / folder) for line in oracle.lines(path)
                      if oracle.is_object(line)] for folder in ("song_data", "log_data"))
    versions = groups([song for song in songs if "song_id" in song], "song_id").values()
    assert any(len(set(map(json.dumps, same))) > 1 for same in versions)
    keyed = [event for event in events if {"ts", "userId", "sessionId", "itemInSession"} <= set(event)]
    copies = groups(keyed, "ts", "userId", "sessionId", "itemInSession").values()
    for column in ("level", "location", "userAgent", "artist", "song", "length"):
        assert any(len({json.dumps(row.get(column)) for row in same}) > 1 for same in copies), column
