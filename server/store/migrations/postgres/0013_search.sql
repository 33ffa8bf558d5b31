-- Texts that can be searched for. pos: the event's place, as in events. field: what of the event, one bit: 1 a message's
-- body, 2 a room's name, 4 a room's topic. words: made by the server; and !, the room's number, so that the rooms of a
-- search narrow it in the index.
CREATE TABLE search_texts (
    pos        BIGINT PRIMARY KEY,
    event_nid  BIGINT NOT NULL,
    room_nid   BIGINT NOT NULL,
    sender_nid BIGINT NOT NULL,
    field      BIGINT NOT NULL,
    words      TSVECTOR NOT NULL
);
CREATE INDEX search_texts_room ON search_texts (room_nid);
CREATE INDEX search_texts_words ON search_texts USING gin (words);

-- The user directory: everyone who is in a room here. words: what they are found by, as a list in JSON.
CREATE TABLE directory_users (
    user_nid     BIGINT PRIMARY KEY,
    display_name TEXT,
    avatar_url   TEXT,
    words        TEXT NOT NULL
);

-- The rooms whose members are in it, and whether these are found by everyone.
CREATE TABLE directory_rooms (
    room_nid  BIGINT PRIMARY KEY,
    is_public BOOLEAN NOT NULL
);

-- Who is found by which word, and by whom: the members of the room `scope`, or by everyone where it is 0. Words are
-- compared byte by byte, whatever the language of the database is.
CREATE TABLE directory_words (
    scope    BIGINT NOT NULL,
    word     TEXT COLLATE "C" NOT NULL,
    user_nid BIGINT NOT NULL,
    PRIMARY KEY (scope, word, user_nid)
);
CREATE INDEX directory_words_user ON directory_words (user_nid, scope, word);
