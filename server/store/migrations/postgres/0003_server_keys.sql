-- Keys by which other servers sign. valid_until_ts: signatures up to then are good; for a key that is used no more,
-- that is expired_ts. fetched_ts: of the document that told of it last.
CREATE TABLE server_keys (
    server_name    TEXT NOT NULL,
    key_id         TEXT NOT NULL,
    public_key     BYTEA NOT NULL,
    valid_until_ts BIGINT NOT NULL,
    expired_ts     BIGINT,
    fetched_ts     BIGINT NOT NULL,
    PRIMARY KEY (server_name, key_id)
);

-- The documents that told of these keys, as their servers signed them, for those who ask us as a notary. One that no
-- key refers to any more is deleted.
CREATE TABLE server_key_documents (
    server_name    TEXT NOT NULL,
    fetched_ts     BIGINT NOT NULL,
    valid_until_ts BIGINT NOT NULL,
    json           TEXT NOT NULL,
    PRIMARY KEY (server_name, fetched_ts)
);
