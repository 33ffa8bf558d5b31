-- The events that relate to another one by m.relates_to with a rel_type, as far as clients may be shown them. The other one
-- is named as the event does it: it may come later, or never. An event that is redacted relates to nothing any more.
CREATE TABLE event_relations (
    event_nid  INTEGER PRIMARY KEY,
    room_nid   INTEGER NOT NULL,
    parent_id  TEXT NOT NULL,
    rel_type   TEXT NOT NULL,
    event_type TEXT NOT NULL,
    sender_nid INTEGER NOT NULL,
    ts         INTEGER NOT NULL,
    pos        INTEGER NOT NULL,
    -- Whether the event has what an edit must have, whatever it edits.
    is_edit    BOOLEAN NOT NULL
);
CREATE INDEX event_relations_pos ON event_relations (room_nid, parent_id, pos);
CREATE INDEX event_relations_type ON event_relations (room_nid, parent_id, rel_type, pos);
CREATE INDEX event_relations_sender ON event_relations (room_nid, parent_id, sender_nid, rel_type, ts);

-- The threads of rooms, counted: one of thousands of messages is told of without reading them.
CREATE TABLE threads (
    room_nid   INTEGER NOT NULL,
    root_id    TEXT NOT NULL,
    latest_pos INTEGER NOT NULL,
    count      INTEGER NOT NULL,
    PRIMARY KEY (room_nid, root_id)
);
CREATE INDEX threads_latest ON threads (room_nid, latest_pos);

-- What is here already.
INSERT INTO event_relations (event_nid, room_nid, parent_id, rel_type, event_type, sender_nid, ts, pos, is_edit)
SELECT e.event_nid, e.room_nid,
       json_extract(e.body, '$.content."m.relates_to".event_id'),
       json_extract(e.body, '$.content."m.relates_to".rel_type'),
       json_extract(e.body, '$.type'), e.sender_nid, min(json_extract(e.body, '$.origin_server_ts'), 9223372036854775807), e.pos,
       e.key_nid IS NULL AND (json_extract(e.body, '$.type') = 'm.room.encrypted'
           OR json_type(e.body, '$.content."m.new_content"') IS 'object')
FROM (SELECT *, CAST(json AS TEXT) AS body FROM events
      WHERE pos IS NOT NULL AND flags & 3 = 0 AND redacted_by IS NULL AND instr(json, CAST('m.relates_to' AS BLOB)) > 0) AS e
WHERE json_type(e.body, '$.content."m.relates_to".event_id') = 'text'
  AND json_type(e.body, '$.content."m.relates_to".rel_type') = 'text'
  AND length(CAST(json_extract(e.body, '$.content."m.relates_to".event_id') AS BLOB)) BETWEEN 2 AND 255
  AND length(CAST(json_extract(e.body, '$.content."m.relates_to".rel_type') AS BLOB)) <= 255;
INSERT INTO threads (room_nid, root_id, latest_pos, count)
SELECT room_nid, parent_id, MAX(pos), COUNT(*) FROM event_relations WHERE rel_type = 'm.thread' GROUP BY room_nid, parent_id;
