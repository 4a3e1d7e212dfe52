"""Make up a music service's lake: song files and event logs like the real ones, of any size, clean or dirty.

    python benchmarks/generate.py data                     the committed sample: 560 events, 60 songs, 14 days
    python benchmarks/generate.py /tmp/lake --seed 2       the same kind of lake, other content
    python benchmarks/generate.py /tmp/big --songs 15000 --days 30 --scale 7000     4 million events, 2 GB of logs
    python benchmarks/generate.py /tmp/bad --dirty         mixes in what a lake should not hold, and sometimes does

The same arguments give the same bytes on any machine and Python: chance comes from `Random.random()` alone, and every
session, person and song draws from a stream of its own, so neither the number of workers nor the order of work shows.

    OUT/log_data/2018/11/2018-11-01-events.json   one file a UTC day, one event a line, in time order
    OUT/song_data/A/B/C/TRABCXY128F00002A.json    one song a file
"""

import argparse
import json
import os
import struct
import sys
import zlib
from bisect import bisect
from datetime import date, datetime, timedelta, timezone
from functools import partial
from itertools import accumulate
from multiprocessing import Pool
from pathlib import Path
from random import Random
from typing import NamedTuple

# ---------------------------------------------------------------------------------------------------------------------
# The vocabulary: every name is invented
# ---------------------------------------------------------------------------------------------------------------------

FIRST_NAMES = {
    "F": ("Alvina", "Brisa", "Corrie", "Dalea", "Elsin", "Fenja", "Isolde", "Jorunn", "Maëlle", "Niamh", "Orla",
          "Zofia"),
    "M": ("Anselm", "Birk", "Caspian", "Dorran", "Emeric", "Falk", "Jory", "Leif", "Otmar", "Søren", "Tavish",
          "Wendel"),
}
LAST_NAMES = ("Ashgrove", "Bellweather", "Crane-Holt", "D'Arvo", "Elmstead", "Fenwright", "Garrow", "Hollins",
              "Ivarson", "Jessop", "Kettering", "Lindqvist", "Marlowe", "Núñez", "O'Tarrow", "Pembury", "Quill",
              "Rookwood", "Silvan")
TOWNS = ("Alder Creek", "Brackenridge", "Coldwater", "Dunmore", "Elmhaven", "Fairhollow", "Grayling", "Lakemoor",
         "Marrow Bay", "Northwick", "Port Sorrel", "Saint-Étienne Falls", "Windham", "Yarrow")
STATES = ("CA", "IL-IN-WI", "ME", "NY-NJ-PA", "OR-WA", "TX", "VT", "WI-MI")
MOODS = ("Amber", "Broken", "Crimson", "Distant", "Électrique", "Faded", "Golden", "Hollow", "Iron", "Midnight",
         "Paper", "Quiet", "Silver", "Velvet", "Wild", "Zürich")
THINGS = ("Arcade", "Bridges", "Cathedral", "Dynamo", "Engines", "Fjord", "Garden", "Harbour", "Lanterns", "Mañana",
          "Orchestra", "Parade", "Rivers", "Satellites", "Thunder", "Wolves")
SOUNDS = ("Echo", "Letter", "Summer", "Window", "Road", "Signal", "Winter", "Fire", "Shadow", "Morning", "Ocean",
          "Song")
TITLE_SHAPES = ("{mood} {sound}", "The {sound} And The {thing}", "{sound} (Album Version)", "Don't {sound} Me",
                "{thing}", 'Say "{sound}"', "{mood} {thing} / {sound}", "¿{sound} O {thing}?", "{sound} \\ {sound}",
                "{mood} 夜 {sound}", "{sound}, My {sound}", "{thing} 🎷 (Live)", "{mood} On {thing}")
NAME_SHAPES = ("{mood} {thing}", "The {mood} {thing}", "{last} & The {thing}", "{first} {last}", "{thing}/{mood}",
               "DJ {last}")
AGENTS = tuple(f'"Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) {browser} Safari/537.36"'
               for system in ("Windows NT 6.1; WOW64", "Macintosh; Intel Mac OS X 10_9_4", "X11; Linux x86_64")
               for browser in ("Chrome/36.0.1985.143", "Ubuntu Chromium/34.0.1847.116 Chrome/34.0.1847.116")) + (
    "Mozilla/5.0 (Windows NT 6.1; WOW64; rv:31.0) Gecko/20100101 Firefox/31.0",)

# What the service answers: page -> (method, status). A repeated page is a likelier one.
ANSWERS = {"NextSong": ("PUT", 200), "Home": ("GET", 200), "Login": ("PUT", 307), "Logout": ("PUT", 307),
           "Upgrade": ("GET", 200), "Submit Upgrade": ("PUT", 307), "Downgrade": ("GET", 200),
           "Submit Downgrade": ("PUT", 307), "Settings": ("GET", 200), "Save Settings": ("PUT", 307),
           "Help": ("GET", 200), "About": ("GET", 200), "Error": ("GET", 404)}
VISITED = ("Home", "Home", "Home", "Home", "Home", "Upgrade", "Downgrade", "Settings", "Settings", "Save Settings",
           "Help", "About", "Error")
VISITED_LOGGED_OUT = ("Home", "Home", "Login", "Help", "About")

HOUR_WEIGHTS = (3, 2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5, 7, 8, 8, 7, 6, 6, 6, 5, 4, 3)
WEEKDAY_WEIGHTS = (9, 9, 10, 9, 10, 5, 4)  # Monday first

# ---------------------------------------------------------------------------------------------------------------------
# Chance and time
# ---------------------------------------------------------------------------------------------------------------------

SECOND, HOUR, DAY = 1000, 3_600_000, 86_400_000  # in milliseconds
LONGEST_PAUSE = 600 * SECOND
LONGEST_SESSION = 60  # events; with the longest pauses still under half a day, so no session sees two midnights


def stream(*names: object) -> Random:
    """A random stream of its own for the thing named: stream(1, "song", 7) is always the same."""
    return Random(" ".join(map(str, names)))


def pick(rng: Random, things: tuple) -> object:
    """One of the things, each as likely. Unlike `Random.choice` the same in every version of Python."""
    return things[int(rng.random() * len(things))]


def between(rng: Random, low: int, high: int) -> int:
    """An integer from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def weighted(rng: Random, cumulated: list) -> int:
    """An index into the weights that were cumulated, as likely as its weight."""
    return bisect(cumulated, rng.random() * cumulated[-1])


def midnight(day: date) -> int:
    """date(2018, 11, 1) -> 1541030400000, the epoch milliseconds at which that day begins in UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp()) * 1000


class Settings(NamedTuple):
    """What the command line asks for."""

    out: Path
    seed: int
    events: int
    songs: int
    days: int
    start: date
    dirty: bool

    def day(self, number: int) -> date:
        return self.start + timedelta(days=number)


# ---------------------------------------------------------------------------------------------------------------------
# Songs
# ---------------------------------------------------------------------------------------------------------------------


def phrase(rng: Random, shapes: tuple) -> str:
    """A made-up title or name: "Quiet Harbour"."""
    return pick(rng, shapes).format(
        mood=pick(rng, MOODS), thing=pick(rng, THINGS), sound=pick(rng, SOUNDS), last=pick(rng, LAST_NAMES),
        first=pick(rng, FIRST_NAMES[pick(rng, ("F", "M"))]))


def letters(rng: Random, count: int) -> str:
    return "".join(pick(rng, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(count))


def artist(seed: int, number: int) -> dict:
    """An artist's part of a song. One in four has no place on the map; places may be unknown, blank or null."""
    rng = stream(seed, "artist", number)
    name, town, state = phrase(rng, NAME_SHAPES), pick(rng, TOWNS), pick(rng, STATES)
    mapped = rng.random() < 0.75
    return {
        "artist_id": f"AR{letters(rng, 5)}1187B{number:06X}",
        "artist_latitude": between(rng, 2_500_000, 4_900_000) / 100_000 if mapped else None,
        "artist_longitude": between(rng, -12_400_000, -6_700_000) / 100_000 if mapped else None,
        "artist_location": pick(rng, (f"{town}, {state}", town, "United States", "", None)),
        "artist_name": name,
    }


def respelled(about: dict, year: int) -> dict:
    """The artist as written in that year: names and places drift, so the spellings of a long career compete."""
    name, place = about["artist_name"], about["artist_location"]
    if year % 4 == 1:
        return {**about, "artist_name": f"{name} feat. {name.split()[-1]} Jr.", "artist_location": ""}
    if year % 4 == 2:
        return {**about, "artist_name": name.upper(), "artist_latitude": None}
    if year % 4 == 3:
        return {**about, "artist_location": f"{place or 'Lakemoor'}, USA"}
    return about


def song_of_its_own(seed: int, number: int, artists: int) -> dict:
    """A song by one of the artists, a few of whom made most of the songs. Four in ten have no known year: 0."""
    rng = stream(seed, "song", number)
    year = 0 if rng.random() < 0.4 else between(rng, 1961, 2010)
    by = int(rng.random() * rng.random() * artists)
    return {
        "num_songs": 1, **respelled(artist(seed, by), year),
        "song_id": f"SO{letters(rng, 7)}12{number * 7919 % 0x10000000:07X}",  # odd factor: no two numbers meet
        "title": phrase(rng, TITLE_SHAPES), "duration": between(rng, 3_000_000, 59_000_000) / 100_000, "year": year,
    }


def song(seed: int, number: int, artists: int) -> dict:
    """Song `number` of the catalogue.

    In every ten, one shares its title with the song before, one title and artist, one title, artist and duration.
    """
    own = song_of_its_own(seed, number, artists)
    artist_keys = tuple(key for key in own if key.startswith("artist"))
    shared = {1: ("title",), 3: ("title", "duration", *artist_keys), 5: ("title", *artist_keys)}.get(number % 10, ())
    before = song_of_its_own(seed, number - 1, artists) if shared else {}
    return {**own, **{key: before[key] for key in shared}}


def catalogue(settings: Settings) -> list:
    return [song(settings.seed, number, max(2, settings.songs // 3)) for number in range(settings.songs)]


def song_path(settings: Settings, number: int) -> Path:
    """song_data/A/B/C/TRABC....json: 24 songs to a folder."""
    folder = number // 24
    a, b, c = (chr(65 + folder // 26**power % 26) for power in (2, 1, 0))
    return settings.out / "song_data" / a / b / c / f"TR{a}{b}{c}{letters(stream(number), 2)}128F{number:06X}.json"


def write_songs(settings: Settings, songs: list) -> None:
    for number, row in enumerate(songs):
        write(song_path(settings, number), json.dumps(row).encode())


# ---------------------------------------------------------------------------------------------------------------------
# Plays and people, already in JSON
# ---------------------------------------------------------------------------------------------------------------------


class Play(NamedTuple):
    """What a play adds to an event, in JSON, and how long it sounds."""

    artist: str
    length: str
    song: str
    milliseconds: int


SILENCE = Play("null", "null", "null", 0)


def in_json(value: object) -> str:
    """The value as the service writes it: UTF-8 as it is, each slash with a backslash."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("/", "\\/")


def play(name: str, length: float, title: str) -> Play:
    return Play(in_json(name), in_json(length), in_json(title), int(length * SECOND))


def strange_play(seed: int, number: int, songs: list) -> Play:
    """A play of nothing in the catalogue: one in five comes close, with the title of a song in it."""
    rng = stream(seed, "strange play", number)
    length, near = between(rng, 3_000_000, 59_000_000) / 100_000, pick(rng, songs)
    if number % 10 == 0:
        return play(phrase(rng, NAME_SHAPES), near["duration"], near["title"])
    if number % 10 == 5:
        return play(near["artist_name"], length, near["title"])
    return play(phrase(rng, NAME_SHAPES), length, phrase(rng, TITLE_SHAPES))


class World(NamedTuple):
    """All that the events of a day are made from, beside the plan of its sessions."""

    settings: Settings
    known: tuple    # plays of songs in the catalogue
    strange: tuple  # plays of other songs

    @classmethod
    def of(cls, settings: Settings, songs: list) -> "World":
        known = (play(row["artist_name"], row["duration"], row["title"]) for row in songs)
        strange = (strange_play(settings.seed, number, songs) for number in range(200 + 2 * len(songs)))
        return cls(settings, tuple(known), tuple(strange))

    def play(self, rng: Random) -> Play:
        return pick(rng, self.known if rng.random() < 0.2 else self.strange)


class Person(NamedTuple):
    """The parts of an event that are the listener's, in JSON, between the parts that change."""

    names: str    # "auth" to "gender"
    surname: str
    place: str
    since: str
    agent: str    # with "userId"


NOBODY = Person('"auth":"Logged Out","firstName":null,"gender":null', '"lastName":null', '"location":null',
                '"registration":null', '"userAgent":null,"userId":""')


def person(settings: Settings, user: int, visit: int) -> Person:
    """The user on the visit. Some marry, some have no location, some names are known from the second visit on."""
    rng = stream(settings.seed, "person", user)
    gender = pick(rng, ("F", "M"))
    first, last, married = pick(rng, FIRST_NAMES[gender]), pick(rng, LAST_NAMES), pick(rng, LAST_NAMES)
    place = {3: "", 5: None}.get(user % 8, f"{pick(rng, TOWNS)}-{pick(rng, TOWNS)}, {pick(rng, STATES)}")
    since = midnight(settings.start) - between(rng, 1, 150 * DAY)
    if user % 9 == 4 and visit == 0:
        first = gender = None
    if user % 7 == 2 and visit >= 2:
        last = married
    return Person(f'"auth":"Logged In","firstName":{in_json(first)},"gender":{in_json(gender)}',
                  f'"lastName":{in_json(last)}', f'"location":{in_json(place)}', f'"registration":{since}.0',
                  f'"userAgent":{in_json(pick(rng, AGENTS))},"userId":"{user}"')


# ---------------------------------------------------------------------------------------------------------------------
# Sessions: planned in one pass, since a user's level follows from the visits before
# ---------------------------------------------------------------------------------------------------------------------


class Session(NamedTuple):
    """One visit of one user (0: never logged in), who changes level right after event `change` (0: keeps it)."""

    number: int
    user: int
    visit: int
    begin: int
    events: int
    level: str
    change: int


OTHER_LEVEL = {"free": "paid", "paid": "free"}


def openings(settings: Settings) -> list:
    """(begin, events) of every session in time order: one over each midnight, the rest by weekday and hour."""
    rng, left, found = stream(settings.seed, "openings"), settings.events, []
    days = list(accumulate(WEEKDAY_WEIGHTS[settings.day(n).weekday()] for n in range(settings.days)))
    hours, end = list(accumulate(HOUR_WEIGHTS)), midnight(settings.day(settings.days))
    while left:
        if len(found) < settings.days - 1:
            begin, events = midnight(settings.day(len(found) + 1)) - between(rng, 60, 600) * SECOND, between(rng, 6, 11)
        else:
            day = settings.day(weighted(rng, days))
            begin = midnight(day) + weighted(rng, hours) * HOUR + between(rng, 0, HOUR - 1)
            events = 1 + int(rng.random() * rng.random() * rng.random() * LONGEST_SESSION)
        events = min(events, left)
        found.append((min(begin, end - events * LONGEST_PAUSE), events))
        left -= events
    return sorted(found)


def sessions(settings: Settings) -> list:
    """The plan of every session, in time order; numbers, visits and levels follow from that order."""
    rng, users = stream(settings.seed, "sessions"), max(24, settings.events // 40)
    visits, levels, planned = {}, {}, []
    for number, (begin, events) in enumerate(openings(settings), start=1):
        user = 0 if events < 4 and rng.random() < 0.25 else 1 + int(rng.random() * rng.random() * users)
        visit, level = visits.get(user, 0), levels.get(user, "free" if user % 3 else "paid")
        change = between(rng, 1, events - 3) if user and events > 3 and rng.random() < 0.25 else 0
        planned.append(Session(number, user, visit, begin, events, level, change))
        visits[user], levels[user] = visit + 1, OTHER_LEVEL[level] if change else level
    return planned


def pages(rng: Random, session: Session):
    """(page, logged in, level) of each event of the session."""
    before_login = session.events if not session.user else 1 if session.change != 1 and rng.random() < 0.15 else 0
    level = session.level
    for item in range(session.events):
        if item < before_login:
            yield pick(rng, VISITED_LOGGED_OUT), False, level
        elif item and item == session.change:
            yield "Submit Upgrade" if level == "free" else "Submit Downgrade", True, level
            level = OTHER_LEVEL[level]
        elif item and item == session.change + 1:
            yield pick(rng, ("NextSong", "Home")), True, level
        elif item == session.events - 1 and rng.random() < 0.2:
            yield "Logout", True, level
        else:
            yield "NextSong" if rng.random() < 0.86 else pick(rng, VISITED), True, level


def events(world: World, session: Session) -> list:
    """The session's events as (ts, session, item, line)."""
    rng, ts, found = stream(world.settings.seed, "events", session.number), session.begin, []
    user = person(world.settings, session.user, session.visit)
    for item, (page, logged_in, level) in enumerate(pages(rng, session)):
        who = user if logged_in else NOBODY
        method, status = ANSWERS[page]
        heard = world.play(rng) if page == "NextSong" else SILENCE
        found.append((ts, session.number, item, (
            f'{{"artist":{heard.artist},{who.names},"itemInSession":{item},{who.surname},"length":{heard.length},'
            f'"level":"{level}",{who.place},"method":"{method}","page":"{page}",{who.since},'
            f'"sessionId":{session.number},"song":{heard.song},"status":{status},"ts":{ts},{who.agent}}}')))
        if rng.random() > 0.04:  # now and then a redirect: two events in one millisecond
            ts += heard.milliseconds or between(rng, 1, 90 * SECOND)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Days: each can be written by itself
# ---------------------------------------------------------------------------------------------------------------------


def sessions_by_day(settings: Settings, planned: list) -> list:
    """For each day the sessions that may have an event on it; a session reaches into the next day at most."""
    first, found = midnight(settings.start), [[] for _ in range(settings.days)]
    for session in planned:
        begin, end = session.begin - first, session.begin - first + (session.events - 1) * LONGEST_PAUSE
        for day in range(begin // DAY, end // DAY + 1):
            found[day].append(session)
    return found


def day_lines(world: World, day: int, visitors: list) -> list:
    """The event lines of that day in time order."""
    begin = midnight(world.settings.day(day))
    found = [event for session in visitors for event in events(world, session) if begin <= event[0] < begin + DAY]
    return [line for _, _, _, line in sorted(found)]


def write_day(world: World, numbered: tuple) -> None:
    """Write the day's log file; a day without an event has none."""
    day, visitors = numbered
    settings, lines = world.settings, day_lines(world, day, visitors)
    path = settings.out / "log_data" / f"{settings.day(day):%Y/%m/%Y-%m-%d}-events.json"
    if settings.dirty and lines:
        write_dirty_day(settings, path, day, lines)
    elif lines:
        write(path, "\n".join(lines).encode())


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_logs(world: World, workers: int) -> None:
    """Write all days, by several processes where there is enough to do."""
    days = list(enumerate(sessions_by_day(world.settings, sessions(world.settings))))
    if workers == 1 or world.settings.events < 50_000:
        for numbered in days:
            write_day(world, numbered)
        return
    with Pool(workers) as pool:
        for _ in pool.imap_unordered(partial(write_day, world), days):
            pass


# ---------------------------------------------------------------------------------------------------------------------
# Dirt: every day gets every kind once, each made from one of the day's own lines
# ---------------------------------------------------------------------------------------------------------------------

ABSENT = object()  # as a value: the key is left out

BROKEN_LINES = (  # line -> a line that is not one JSON object
    lambda line: line[:-40],
    lambda line: line + " oops",
    lambda line: line + "}",
    lambda line: line + line,
    lambda line: line + " " + line,
    lambda line: f"[{line}]",
    lambda line: line.replace('"', "'"),
    lambda line: line[:-1] + ",}",
    lambda line: line.replace('"status":200', '"status":NaN'),
    lambda line: line.replace('"status":200', '"length":-Infinity'),
    lambda line: line.replace('"status":200', '"status":0200'),
    lambda line: line.replace("NextSong", "Next\tSong"),
    lambda line: "// a comment",
    lambda line: '"NextSong"',
    lambda line: "1541016707796",
    lambda line: "null",
    lambda line: "{",
)
WRONG_TYPES = (
    {"ts": "1541016707796"}, {"ts": 1541016707796.0}, {"ts": 2**70}, {"ts": 2**63}, {"ts": True},
    {"sessionId": "12"}, {"sessionId": 12.0}, {"sessionId": 2**63}, {"sessionId": -(2**63) - 1},
    {"itemInSession": "3"}, {"itemInSession": 3.5}, {"itemInSession": 2**70}, {"itemInSession": False},
    {"length": "200.5"}, {"length": True}, {"length": ""}, {"ts": "now", "page": None, "userId": None},
)
MISSING = (
    {"page": ABSENT}, {"page": None}, {"page": None, "ts": None}, {"ts": ABSENT}, {"ts": None},
    {"ts": None, "userId": None}, {"ts": 1541016707}, {"ts": 0}, {"ts": -1}, {"ts": 946684799999},
    {"ts": 4102444800000}, {"ts": 2**62}, {"userId": ABSENT}, {"userId": None}, {"userId": "abc"}, {"userId": "12a"},
    {"userId": "-5"}, {"userId": "4 2"}, {"userId": "1" * 19}, {"userId": 10**18}, {"userId": "٣"}, {"userId": 39.5},
    {"userId": True}, {"userId": "x", "page": "Home"}, {"userId": ""}, {"userId": "   "}, {"sessionId": ABSENT},
    {"sessionId": None}, {"itemInSession": ABSENT}, {"itemInSession": None}, {"sessionId": None, "itemInSession": None},
)
AWKWARD = (  # usable, each a play or an event of its own
    {"userId": 39}, {"userId": " 39 "}, {"userId": "0039"}, {"userId": "9" * 18}, {"userId": "0"},
    {"ts": 946684800000}, {"ts": 4102444799999}, {"ts": 1546300799999}, {"ts": 1546300800000},
    {"sessionId": -7}, {"sessionId": 2**63 - 1}, {"itemInSession": -1}, {"itemInSession": 2**40},
    {"song": 1999}, {"song": True}, {"artist": 311}, {"artist": 1.5}, {"song": ""}, {"artist": None}, {"length": None},
    {"length": 200}, {"length": 2e2}, {"length": 0}, {"length": 1e300}, {"song": "next\u0085line\u2028here"},
    {"song": "tab\there\nand there"}, {"location": ""}, {"location": "  "}, {"location": " \t "}, {"location": ABSENT},
    {"level": None}, {"level": ""}, {"level": "  ", "page": "Home"}, {"firstName": " ", "lastName": ""},
    {"gender": None}, {"firstName": 7}, {"userAgent": None}, {"extra": {"nested": [1, "NextSong"]}},
    {"registration": "soon"}, {"page": "nextsong"}, {"page": "NextSong "}, {"page": ""}, {"page": 7},
    {"page": "Home", "sessionId": None}, {"page": "Home", "itemInSession": None}, {"page": "Home", "userId": ""},
    {"page": "Home", "userId": "  "},
)
OTHER_COPIES = (  # the same play once more, with another column different
    {}, {"level": None}, {"level": "trial"}, {"location": None}, {"location": "Zz"}, {"userAgent": None},
    {"userAgent": ""}, {"artist": "Éa"}, {"song": "zz"}, {"song": None}, {"length": 999.5}, {"length": None}
)


def changed(line: str, changes: dict) -> str:
    """The line with the values changed, or left out where ABSENT."""
    return in_json({key: value for key, value in {**json.loads(line), **changes}.items() if value is not ABSENT})


def dirty_events(plays: list) -> list:
    """One line of every kind of dirt, made from the plays in turn; the usable ones as plays of their own."""
    def base(number: int) -> str:
        return plays[number % len(plays)]

    found = [broken(base(n)) for n, broken in enumerate(BROKEN_LINES)]
    found += [changed(base(n), changes) for n, changes in enumerate(WRONG_TYPES + MISSING)]
    found += [changed(base(n), {"itemInSession": 1000 + n, **changes}) for n, changes in enumerate(AWKWARD)]
    found += [changed(base(n), changes) for n, changes in enumerate(OTHER_COPIES)]
    return [*found, base(0), base(1).replace('"userId":"', '"userId":" 00'), f" \t{base(2)} ", reordered(base(3)),
            "", "   ", "\t"]


def reordered(line: str) -> str:
    """The same object with its keys the other way round, spaces between, and no character but ASCII."""
    return json.dumps(dict(reversed(json.loads(line).items())))


def mixed(rng: Random, lines: list, dirt: list) -> list:
    """The lines in their order with the dirt anywhere between."""
    mix = list(lines)
    for line in dirt:
        mix.insert(between(rng, 0, len(mix)), line)
    return mix


def gzipped(content: bytes) -> bytes:
    """The content as gzip, stored and not compressed: what zlib makes of it would depend on its version."""
    blocks = [content[at:at + 0xFFFF] for at in range(0, len(content), 0xFFFF)] or [b""]
    stored = b"".join(struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block
                      for block in blocks)
    header = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no name, time 0
    return header + stored + struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)


def write_dirty_day(settings: Settings, path: Path, day: int, lines: list) -> None:
    """Write the day with its dirt, in turn: under two names; with BOM and CRLF; gzipped; with old Mac line ends."""
    plays = [line for line in lines if '"page":"NextSong"' in line]
    dirt = dirty_events(plays) if plays else []
    mix = mixed(stream(settings.seed, "dirt", day), lines, dirt)
    text = "\n".join(mix) + "\n"
    if day % 4 == 0:
        write(path, text.encode())
        write(path.with_name(path.stem + "-again.json"), text.encode())
    elif day % 4 == 1:
        write(path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    elif day % 4 == 2:
        write(path.with_name(path.name + ".gz"), gzipped(text.encode()))
    else:
        write(path, text.replace("\n", "\r").encode())


SONG_CHANGES = (
    {}, {"title": "A Later Title"}, {"title": None}, {"year": 2017}, {"year": 0}, {"year": None}, {"year": ABSENT},
    {"duration": 1.5}, {"duration": None}, {"duration": 215}, {"artist_id": ""}, {"artist_id": "   "},
    {"artist_id": None}, {"artist_name": ""}, {"artist_name": " ", "year": 2018},
    {"artist_name": None, "artist_location": None, "year": 2018}, {"artist_location": "\t"},
    {"artist_latitude": 0.0, "artist_longitude": -0.5}, {"artist_latitude": 51}, {"title": 1999},
    {"title": "Next\u0085line\u2028here"}, {"song_id": 17}, {"artist_id": 17}, {"num_songs": "one"},
    {"year": 2**31 - 1}, {"song_id": ""}, {"song_id": "  "}, {"song_id": None}, {"song_id": ABSENT},
    {"song_id": None, "year": "x"}, {"year": "2001"}, {"year": 2001.0}, {"year": 2**31}, {"year": 2**70},
    {"year": True}, {"duration": "200.1"}, {"duration": False}, {"artist_latitude": "51.5"},
    {"artist_longitude": "-0.1"}, {"artist_longitude": True},
)


def write_dirty_songs(settings: Settings, songs: list) -> None:
    """Write what a song folder should not hold: files of many songs, other versions of songs, broken lines."""
    lines = [json.dumps(row) for row in songs]
    versions = [changed(lines[n % len(lines)], changes) for n, changes in enumerate(SONG_CHANGES)]
    nudged = [json.dumps({**row, "duration": row["duration"] + 0.000001}) for row in songs[::3]]
    broken = [broken(lines[n % len(lines)]) for n, broken in enumerate(BROKEN_LINES)]
    broken = [line for line in broken if line not in lines]  # a breakage of something that only events have
    half, folder = len(versions) // 2, settings.out / "song_data"
    write(folder / "many.json", b"\xef\xbb\xbf" + "\r\n".join(["", *versions[:half], "  ", *broken, ""]).encode())
    write(folder / "more" / "many.json.gz", gzipped("\n".join([*versions[half:], *versions[:half], *nudged]).encode()))
    write(folder / "more" / "one line.json", (lines[0] + lines[1]).encode())
    write(folder / "empty.json", b"")


def write_unread(settings: Settings, songs: list) -> None:
    """Write what no reader may count: hidden files and folders, and files that are no JSON by their name."""
    ghost = json.dumps({**songs[0], "song_id": "SOGHOST", "artist_id": "ARGHOST", "year": 2020}).encode()
    for name in ("_temporary/0/part.json", ".hidden.json", "_SUCCESS.json", "A/.cache/ghost.json", "notes.txt",
                 "old.json.bak"):
        write(settings.out / "song_data" / name, ghost)
    for name in ("_temporary/0/part.json", ".hidden.json", "2018/_old/events.json"):
        write(settings.out / "log_data" / name, b"{broken")


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, is {text}")
    return number


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        description="Make up a lake of song and log files, the same bytes for the same arguments.",
        epilog="An event takes about 500 bytes: --scale 7000 on the default 560 events makes 2 GB of logs.")
    command.add_argument("out", metavar="OUT", type=Path, help="folder for song_data/ and log_data/: new or empty")
    command.add_argument("--seed", type=int, default=1, metavar="N", help="another seed, another lake (default 1)")
    command.add_argument("--events", type=positive, default=560, metavar="N", help="log lines in all (default 560)")
    command.add_argument("--songs", type=positive, default=60, metavar="N", help="songs, a file each (default 60)")
    command.add_argument("--days", type=positive, default=14, metavar="N", help="days, a log file each (default 14)")
    command.add_argument("--start", type=date.fromisoformat, default=date(2018, 10, 25), metavar="DATE",
                         help="first day, in UTC (default 2018-10-25)")
    command.add_argument("--scale", type=positive, default=1, metavar="N", help="multiply --events by N (default 1)")
    command.add_argument("--dirty", action="store_true", help="add bad and awkward lines of every kind to each day")
    command.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N",
                         help="processes (default: one a core); the output is the same for any number")
    return command


def main(argv: "list | None" = None) -> int:
    args = parser().parse_args(argv)
    if args.out.is_dir() and any(args.out.iterdir()):
        print(f"generate.py: {args.out} is not empty: name a new folder, or remove what is in it", file=sys.stderr)
        return 2
    settings = Settings(args.out, args.seed, args.events * args.scale, args.songs, args.days, args.start, args.dirty)
    songs = catalogue(settings)
    write_songs(settings, songs)
    write_logs(World.of(settings, songs), args.workers)
    if settings.dirty:
        write_dirty_songs(settings, songs)
        write_unread(settings, songs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
