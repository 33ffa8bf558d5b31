-- What users have reported to the administrators: an event, a room, or a user. What is reported is kept by its name,
-- since a room or a user need not be known here.
CREATE TABLE reports (
    report_nid   INTEGER PRIMARY KEY AUTOINCREMENT,
    reporter_nid INTEGER NOT NULL REFERENCES users,
    room_id      TEXT,
    event_id     TEXT,
    user_id      TEXT,
    reason       TEXT NOT NULL,
    received_ts  INTEGER NOT NULL
);
CREATE INDEX reports_reporter ON reports (reporter_nid, report_nid);
