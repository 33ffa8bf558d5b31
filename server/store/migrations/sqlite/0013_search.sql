-- Texts that can be searched for. pos: the event's place, as in events. field: what of the event, one bit: 1 a message's
-- body, 2 a room's name, 4 a room's topic.
CREATE TABLE search_texts (
    pos        INTEGER PRIMARY KEY,
    event_nid  INTEGER NOT NULL,
    room_nid   INTEGER NOT NULL,
    sender_nid INTEGER NOT NULL,
    field      INTEGER NOT NULL
);
CREATE INDEX search_texts_room ON search_texts (room_nid);

-- Their words; rowid: the pos. The words are made by the server, with spaces between them, and the texts are not kept a
-- second time. room: the letter r and the room's number, so that the rooms of a search narrow it in the index.
CREATE VIRTUAL TABLE search_words USING fts5 (
    words, room, content = '', contentless_delete = 1, tokenize = 'ascii'
);

-- The user directory: everyone who is in a room here. words: what they are found by, as a list in JSON.
CREATE TABLE directory_users (
    user_nid     INTEGER PRIMARY KEY,
    display_name TEXT,
    avatar_url   TEXT,
    words        TEXT NOT NULL
);

-- The rooms whose members are in it, and whether these are found by everyone.
CREATE TABLE directory_rooms (
    room_nid  INTEGER PRIMARY KEY,
    is_public BOOLEAN NOT NULL
);

-- Who is found by which word, and by whom: the members of the room `scope`, or by everyone where it is 0.
CREATE TABLE directory_words (
    scope    INTEGER NOT NULL,
    word     TEXT NOT NULL,
    user_nid INTEGER NOT NULL,
    UNIQUE (scope, word, user_nid)
);
CREATE INDEX directory_words_user ON directory_words (user_nid, scope, word);
