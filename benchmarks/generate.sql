-- A music service's lake as DuckDB tables: song, person, event, and the view line. generate.py sets the variables
-- seed, events, songs, days and first (the first day's midnight, in epoch milliseconds), and writes the files.
-- Every draw is a hash of the seed, a name and a number: the same for any number of threads.
CREATE MACRO chance(name, n) AS (hash(hash(getvariable('seed'), name, n)) >> 11) / 9007199254740992.0;  -- 0 to 1
CREATE MACRO upto(size, name, n) AS floor(chance(name, n) * size)::BIGINT;  -- an integer below the size
CREATE MACRO within(low, high, name, n) AS low + upto(high - low + 1, name, n);
CREATE MACRO one_of(words, name, n) AS getvariable(words)[1 + upto(len(getvariable(words)), words || name, n)];
CREATE MACRO letters(size, name, n) AS
    left(upper(translate(md5(concat_ws(' ', getvariable('seed'), name, n)), '0123456789', 'GHIJKLMNOP')), size);
CREATE MACRO seconds(name, n) AS within(3000000, 59000000, name, n) / 100000;

-- Every name is invented. The odd characters are here on purpose: quotes, slashes, commas, letters beyond ASCII.
SET VARIABLE names_F = ['Alvina', 'Brisa', 'Corrie', 'Dalea', 'Elsin', 'Fenja', 'Isolde', 'Maëlle', 'Orla', 'Zofia'];
SET VARIABLE names_M = ['Anselm', 'Birk', 'Caspian', 'Dorran', 'Emeric', 'Falk', 'Jory', 'Otmar', 'Søren', 'Wendel'];
SET VARIABLE last = ['Ashgrove', 'Crane-Holt', 'D''Arvo', 'Fenwright', 'Hollins', 'Lindqvist', 'Núñez', 'O''Tarrow'];
SET VARIABLE towns = ['Alder Creek, CA', 'Fairhollow-Lakemoor, IL-IN-WI', 'Port Sorrel, TX', 'Saint-Étienne Falls, ME'];
SET VARIABLE moods = ['Amber', 'Distant', 'Électrique', 'Faded', 'Golden', 'Iron', 'Quiet', 'Velvet', 'Wild', 'Zürich'];
SET VARIABLE things = ['Arcade', 'Bridges', 'Dynamo', 'Fjord', 'Garden', 'Mañana', 'Orchestra', 'Rivers', 'Wolves'];
SET VARIABLE sounds = ['Echo', 'Letter', 'Summer', 'Window', 'Signal', 'Winter', 'Fire', 'Shadow', 'Ocean', 'Song'];
SET VARIABLE titles = ['{0} {2}', 'The {2} And The {1}', '{2} (Album Version)', 'Don''t {2} Me', '{1}', 'Say "{2}"',
    '{0} {1} / {2}', '¿{2} O {1}?', '{2} \ {2}', '{0} 夜 {2}', '{2}, My {2}', '{1} 🎷 (Live)', '{0} On {1}'];
SET VARIABLE bands = ['{0} {1}', 'The {0} {1}', '{3} & The {1}', '{1}/{0}', 'DJ {3}', '{0} {3}'];
SET VARIABLE systems = ['Windows NT 6.1; WOW64', 'Macintosh; Intel Mac OS X 10_9_4', 'X11; Linux x86_64'];
SET VARIABLE browsers = ['Chrome/36.0.1985.143', 'Ubuntu Chromium/34.0.1847.116 Chrome/34.0.1847.116'];
SET VARIABLE pages = ['Home', 'Home', 'Upgrade', 'Downgrade', 'Settings', 'Save Settings', 'Help', 'About', 'Error'];
SET VARIABLE open_pages = ['Home', 'Home', 'Login', 'Help', 'About'];  -- of those who are not logged in
CREATE MACRO phrase(shapes, name, n) AS format(one_of(shapes, name, n), one_of('moods', name, n),
    one_of('things', name, n), one_of('sounds', name, n), one_of('last', name, n));

-- Songs: four in ten have no known year. Of every ten, one shares its title with the song before it, one the title and
-- the artist, and one the duration too. A few artists made most of the songs, under names and places that drift.
CREATE MACRO song_year(n) AS if(chance('no year', n) < 0.4, 0, within(1961, 2010, 'year', n));
CREATE MACRO artist_of(n) AS floor(chance('by', n) * chance('by', -n) * greatest(2, getvariable('songs') // 3))::BIGINT;
CREATE TABLE song AS
SELECT
    n, 1 AS num_songs, printf('AR%s1187B%06X', letters(5, 'artist', artist), artist) AS artist_id,
    if(mapped AND career <> 2, within(2500000, 4900000, 'latitude', artist) / 100000, NULL) AS artist_latitude,
    if(mapped, within(-12400000, -6700000, 'longitude', artist) / 100000, NULL) AS artist_longitude,
    CASE career WHEN 1 THEN '' WHEN 3 THEN town || ', USA'
        ELSE [town, 'United States', '', NULL][1 + upto(4, 'place', artist)] END AS artist_location,
    CASE career WHEN 1 THEN band || ' feat. Jr.' WHEN 2 THEN upper(band) ELSE band END AS artist_name,
    printf('SO%s12%07X', letters(7, 'song', n), n * 7919 % 268435456) AS song_id,
    phrase('titles', 'song', n - (n % 10 IN (1, 3, 5))::INT) AS title,
    seconds('song', n - (n % 10 = 3)::INT) AS duration, song_year(n) AS year
FROM (
    SELECT n, artist_of(same) AS artist, song_year(same) % 4 AS career, chance('mapped', artist) < 0.75 AS mapped,
        one_of('towns', 'artist', artist) AS town, phrase('bands', 'artist', artist) AS band
    FROM (SELECT n, n - (n % 10 IN (3, 5))::INT AS same FROM range(getvariable('songs')) AS numbers (n)));

-- What is played: the catalogue's songs, then twice as many others, of which one in five comes close to a song.
CREATE TABLE play AS
SELECT n AS play, artist_name AS artist, title AS song, duration AS length FROM song
UNION ALL
SELECT getvariable('songs') + other.n, if(other.n % 10 = 5, artist_name, phrase('bands', 'other', other.n)),
    if(other.n % 5 = 0, title, phrase('titles', 'other', other.n)),
    if(other.n % 10 = 0, duration, seconds('other', other.n))
FROM range(200 + 2 * getvariable('songs')) AS other (n)
JOIN song ON song.n = upto(getvariable('songs'), 'near', other.n);

CREATE TABLE person AS
SELECT
    n AS person, if(chance('gender', n) < 0.5, 'F', 'M') AS gender,
    if(gender = 'F', one_of('names_F', 'person', n), one_of('names_M', 'person', n)) AS first_name,
    one_of('last', 'person', n) AS last_name, one_of('last', 'married', n) AS married_name,
    CASE n % 8 WHEN 3 THEN '' WHEN 5 THEN NULL ELSE one_of('towns', 'person', n) END AS location,
    (getvariable('first') - within(1, 12960000, 'registration', n) * 1000)::DOUBLE AS registration,
    format('"Mozilla/5.0 ({}) AppleWebKit/537.36 (KHTML, like Gecko) {} Safari/537.36"',
        one_of('systems', 'person', n), one_of('browsers', 'person', n)) AS agent
FROM range(1, 1 + greatest(24, getvariable('events') // 40)) AS users (n);

-- Sessions of 1 to 60 events until there are enough of them: the first ones over each midnight, the rest mostly by day.
-- No pause is longer than 600 s, so none outlasts the last day. User 0 never logs in.
CREATE TABLE session AS
SELECT
    row_number() OVER (ORDER BY begin, n) AS session, begin, events, total - size AS first_event,
    if(events < 4 AND chance('guest', n) < 0.25, 0,
        1 + floor(chance('user', n) * chance('user', -n) * (SELECT count(*) FROM person))::BIGINT) AS user_id,
    chance('late login', n) < 0.15 AS late_login
FROM (
    SELECT n, size, total, least(size, getvariable('events') - total + size) AS events, least(
        getvariable('first') + getvariable('days') * 86400000 - events * 600000,
        getvariable('first') + if(n < getvariable('days') - 1,
            86400000 * (n + 1) - within(60, 600, 'begin', n) * 1000,
            86400000 * upto(getvariable('days'), 'day', n)
                + floor((chance('begin', n) + chance('begin', -n)) * 43200000)::BIGINT)) AS begin
    FROM (
        SELECT n, if(n < getvariable('days') - 1, within(6, 11, 'size', n),
            1 + floor(chance('size', n) * chance('size', -n) * chance('long', n) * 60)::BIGINT) AS size,
            (sum(size) OVER (ORDER BY n))::BIGINT AS total
        FROM range(30 + getvariable('events') // 4) AS numbers (n))
    WHERE total - size < getvariable('events'));

-- Events: a user's level changes right after the page that asks for it. Now and then two share a millisecond.
CREATE TABLE event AS
WITH opened AS (
    SELECT session, begin, user_id, item, first_event + item AS n, item = events - 1 AND item > 0 AS is_last,
        user_id = 0 OR (item = 0 AND late_login) AS logged_out,
        NOT logged_out AND item > 0 AND chance('change', n) < 0.03 AS changes
    FROM (SELECT *, unnest(range(events)) AS item FROM session)
), visited AS (
    SELECT *, CASE WHEN logged_out THEN one_of('open_pages', 'page', n) WHEN changes THEN 'Submit'
        WHEN is_last AND chance('logout', n) < 0.2 THEN 'Logout' WHEN chance('plays', n) < 0.86 THEN 'NextSong'
        ELSE one_of('pages', 'page', n) END AS page,
        CASE WHEN page <> 'NextSong' THEN NULL WHEN chance('known', n) < 0.2 THEN upto(getvariable('songs'), 'play', n)
            ELSE getvariable('songs') + upto(200 + 2 * getvariable('songs'), 'play', n) END AS play
    FROM opened
), timed AS (
    SELECT visited.*, begin + coalesce(sum(if(chance('at once', n) < 0.04, 0,
        coalesce(floor(length * 1000)::BIGINT, within(1, 90, 'pause', n) * 1000))) OVER (
            PARTITION BY session ORDER BY item ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)::BIGINT AS ts
    FROM visited LEFT JOIN play USING (play)
)
SELECT ts, session, item, user_id, logged_out, play,
    (user_id % 3 = 0 AND user_id > 0) <> (coalesce(sum(changes::INT) OVER (PARTITION BY user_id
        ORDER BY ts, session, item ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) % 2 = 1) AS paid,
    if(page = 'Submit', if(paid, 'Submit Downgrade', 'Submit Upgrade'), page) AS page
FROM timed ORDER BY ts, session, item;

-- Log lines, their keys in the app's order. Some users marry, and of some the name and gender are known later.
CREATE VIEW line AS
SELECT
    artist, if(logged_out, 'Logged Out', 'Logged In') AS auth, if(unknown, NULL, first_name) AS "firstName",
    if(unknown, NULL, gender) AS gender, item AS "itemInSession", if(married, married_name, last_name) AS "lastName",
    length, if(paid, 'paid', 'free') AS level, location,
    if(page = 'NextSong' OR status = 307, 'PUT', 'GET') AS method, page, registration, session AS "sessionId", song,
    status, ts, agent AS "userAgent", if(logged_out, '', user_id::VARCHAR) AS "userId"
FROM (
    SELECT *, ts < getvariable('first') + getvariable('days') * 43200000 AS early,
        early AND user_id % 9 = 4 AS unknown, NOT early AND user_id % 7 = 2 AS married,
        CASE WHEN page IN ('Login', 'Logout', 'Save Settings') OR page LIKE 'Submit%' THEN 307
            WHEN page = 'Error' THEN 404 ELSE 200 END AS status
    FROM event)
LEFT JOIN play USING (play)
LEFT JOIN person ON person = user_id AND NOT logged_out;
