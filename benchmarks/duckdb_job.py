#!/usr/bin/env python3
"""The five tables by DuckDB: what one process on one machine can do.

    python benchmarks/duckdb_job.py INPUT OUTPUT

The rows that etl.py makes of a clean lake, as Parquet in the same Hive layout, with less around them:

- songplay_id is another hash of the same key.
- A line that is not JSON or has a wrong type stops it. It counts no lines and has no quarantine.
- It audits nothing and writes straight into the tables: readers see half of a run, and a killed run leaves half.
- It reads *.json on a local disk, no *.json.gz. It neither sizes files nor orders rows in them.
"""

import os
import sys

import duckdb

SCRIPT = r"""
CREATE TEMP MACRO known(value) AS CASE WHEN regexp_matches(value, '\S') THEN value END;
CREATE TEMP MACRO latest(value, nth) AS max_by(value, (nth, value)) FILTER (known(value) IS NOT NULL);

-- One parse of the logs, held as columns in memory: they take less than the text, and are cheap to read again.
CREATE TEMP TABLE event AS
SELECT
    ts, try_cast(userId AS BIGINT) AS user_id, sessionId AS session_id, itemInSession AS item,
    page = 'NextSong' AS is_play, level, location, userAgent AS user_agent, artist, song AS title,
    round(length, 5) AS duration, length, firstName AS first_name, lastName AS last_name, gender
FROM read_json($logs, format = 'newline_delimited', columns = {
    ts: 'BIGINT', page: 'VARCHAR', userId: 'VARCHAR', sessionId: 'BIGINT', itemInSession: 'BIGINT',
    firstName: 'VARCHAR', lastName: 'VARCHAR', gender: 'VARCHAR', level: 'VARCHAR', location: 'VARCHAR',
    userAgent: 'VARCHAR', artist: 'VARCHAR', song: 'VARCHAR', length: 'DOUBLE'});

CREATE TEMP TABLE song AS
SELECT DISTINCT ON (song_id) * REPLACE (coalesce(year, 0) AS year, known(artist_id) AS artist_id)
FROM read_json($songs, format = 'newline_delimited', columns = {
    song_id: 'VARCHAR', title: 'VARCHAR', duration: 'DOUBLE', year: 'INTEGER', artist_id: 'VARCHAR',
    artist_name: 'VARCHAR', artist_location: 'VARCHAR', artist_latitude: 'DOUBLE', artist_longitude: 'DOUBLE'})
ORDER BY song_id, coalesce(year, 0) DESC, duration DESC NULLS LAST, title DESC NULLS LAST,
    known(artist_id) DESC NULLS LAST, artist_name DESC NULLS LAST, artist_location DESC NULLS LAST,
    artist_latitude DESC NULLS LAST, artist_longitude DESC NULLS LAST;

-- Only for the few keys that come more than once are wide rows sorted.
CREATE TEMP TABLE repeated AS
SELECT ts, user_id, session_id, item FROM event WHERE is_play GROUP BY ALL HAVING count(*) > 1;

CREATE TEMP VIEW play AS
SELECT * FROM event ANTI JOIN repeated USING (ts, user_id, session_id, item) WHERE is_play
UNION ALL
SELECT * FROM (
    SELECT DISTINCT ON (ts, user_id, session_id, item) *
    FROM event SEMI JOIN repeated USING (ts, user_id, session_id, item) WHERE is_play
    ORDER BY level DESC NULLS LAST, location DESC NULLS LAST, user_agent DESC NULLS LAST, artist DESC NULLS LAST,
        title DESC NULLS LAST, length DESC NULLS LAST);

CREATE TEMP TABLE match AS
SELECT title, artist_name AS artist, round(duration, 5) AS duration, min_by((song_id, artist_id), song_id) AS song
FROM song GROUP BY ALL;

-- One row for each version of a user's facts: few, and narrow.
CREATE TEMP TABLE version AS
SELECT user_id, first_name, last_name, gender, level,
    max(ts * 2097152 + least(greatest(coalesce(item, 0), 0), 2097151)) AS nth
FROM event WHERE user_id IS NOT NULL GROUP BY ALL
"""

TABLES = {
    "songplays": """
        SELECT
            (hash(ts, user_id, session_id, item)::HUGEINT - 9223372036854775808)::BIGINT AS songplay_id,
            epoch_ms(ts)::TIMESTAMPTZ AS start_time, user_id, level, song[1] AS song_id, song[2] AS artist_id,
            session_id, location, user_agent, title AS song_title, artist AS artist_name, length AS song_length,
            year(epoch_ms(ts))::INTEGER AS year, month(epoch_ms(ts))::INTEGER AS month
        FROM play LEFT JOIN match USING (title, artist, duration)""",
    "users": """
        SELECT user_id, latest(first_name, nth) AS first_name, latest(last_name, nth) AS last_name,
            latest(gender, nth) AS gender, latest(level, nth) AS level
        FROM version GROUP BY user_id""",
    "songs": "SELECT song_id, title, artist_id, duration, year FROM song",
    "artists": """
        SELECT artist_id, name, place.location, place.artist_latitude AS latitude, place.artist_longitude AS longitude
        FROM (
            SELECT artist_id, latest(artist_name, (year, song_id)) AS name, max_by(song, (year, song_id)) FILTER (
                location IS NOT NULL OR artist_latitude IS NOT NULL OR artist_longitude IS NOT NULL) AS place
            FROM (SELECT *, known(artist_location) AS location FROM song) AS song
            WHERE artist_id IS NOT NULL GROUP BY artist_id)""",
    "time": """
        SELECT moment::TIMESTAMPTZ AS start_time, hour(moment)::INTEGER AS hour, day(moment)::INTEGER AS day,
            week(moment)::INTEGER AS week, dayofweek(moment)::INTEGER + 1 AS weekday, year(moment)::INTEGER AS year,
            month(moment)::INTEGER AS month
        FROM (SELECT DISTINCT epoch_ms(ts) AS moment FROM event WHERE is_play)""",
}
PARTITIONS = {"songplays": "year, month", "songs": "year", "time": "year, month"}


def main(source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false")
        places = {"logs": f"{source}/log_data/**/*.json", "songs": f"{source}/song_data/**/*.json"}
        for statement in SCRIPT.split(";\n"):
            db.execute(statement, {name: place for name, place in places.items() if f"${name}" in statement})
        for name, rows in TABLES.items():
            partitions = f"PARTITION_BY ({PARTITIONS[name]}), " if name in PARTITIONS else "PER_THREAD_OUTPUT true, "
            db.execute(f"COPY ({rows}) TO '{target}/{name}' (FORMAT parquet, {partitions}OVERWRITE true)")


if __name__ == "__main__":
    main(*sys.argv[1:])
