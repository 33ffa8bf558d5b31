-- The events that relate to another one by m.relates_to with a rel_type, as far as clients may be shown them. The other one
-- is named as the event does it: it may come later, or never. An event that is redacted relates to nothing any more.
CREATE TABLE event_relations (
    event_nid  BIGINT PRIMARY KEY,
    room_nid   BIGINT NOT NULL,
    parent_id  TEXT NOT NULL,
    rel_type   TEXT NOT NULL,
    event_type TEXT NOT NULL,
    sender_nid BIGINT NOT NULL,
    ts         BIGINT NOT NULL,
    pos        BIGINT NOT NULL,
    -- Whether the event has what an edit must have, whatever it edits.
    is_edit    BOOLEAN NOT NULL
);
CREATE INDEX event_relations_pos ON event_relations (room_nid, parent_id, pos);
CREATE INDEX event_relations_type ON event_relations (room_nid, parent_id, rel_type, pos);
CREATE INDEX event_relations_sender ON event_relations (room_nid, parent_id, sender_nid, rel_type, ts);

-- The threads of rooms, counted: one of thousands of messages is told of without reading them.
CREATE TABLE threads (
    room_nid   BIGINT NOT NULL,
    root_id    TEXT NOT NULL,
    latest_pos BIGINT NOT NULL,
    count      BIGINT NOT NULL,
    PRIMARY KEY (room_nid, root_id)
);
CREATE INDEX threads_latest ON threads (room_nid, latest_pos);

-- What is here already.
-- A NUL, which PostgreSQL's texts cannot have, would end the whole migration: such events are left out.
INSERT INTO event_relations (event_nid, room_nid, parent_id, rel_type, event_type, sender_nid, ts, pos, is_edit)
SELECT e.event_nid, e.room_nid,
       e.body #>> '{content,m.relates_to,event_id}',
       e.body #>> '{content,m.relates_to,rel_type}',
       e.body ->> 'type', e.sender_nid, least((e.body ->> 'origin_server_ts')::numeric, 9223372036854775807)::bigint, e.pos,
       e.key_nid IS NULL AND (e.body ->> 'type' = 'm.room.encrypted'
           OR coalesce(json_typeof(e.body #> '{content,m.new_content}') = 'object', FALSE))
FROM (SELECT *, CASE WHEN position('\\u0000'::bytea IN json) = 0 THEN convert_from(json, 'UTF8')::json END AS body
      FROM events
      WHERE pos IS NOT NULL AND flags & 3 = 0 AND redacted_by IS NULL AND position('m.relates_to'::bytea IN json) > 0) AS e
WHERE json_typeof(e.body #> '{content,m.relates_to,event_id}') = 'string'
  AND json_typeof(e.body #> '{content,m.relates_to,rel_type}') = 'string'
  AND octet_length(e.body #>> '{content,m.relates_to,event_id}') BETWEEN 2 AND 255
  AND octet_length(e.body #>> '{content,m.relates_to,rel_type}') <= 255;
INSERT INTO threads (room_nid, root_id, latest_pos, count)
SELECT room_nid, parent_id, MAX(pos), COUNT(*) FROM event_relations WHERE rel_type = 'm.thread' GROUP BY room_nid, parent_id;
