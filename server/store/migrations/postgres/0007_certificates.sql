-- Accounts at certificate authorities, by the address of the authority's directory (ACME). credentials: JSON, with the
-- account's private key.
CREATE TABLE acme_accounts (
    directory   TEXT PRIMARY KEY,
    credentials TEXT NOT NULL,
    created_ts  BIGINT NOT NULL
);

-- Certificates that all replicas use, and how their renewal stands. names: a list in JSON. chain and private_key: PEM;
-- they, names, directory and issued_ts are NULL until the first one is issued. wanted: what the last failures were about.
-- failures: in a row; no attempt before next_attempt_ts.
CREATE TABLE certificates (
    name            TEXT PRIMARY KEY,
    names           TEXT,
    directory       TEXT,
    chain           TEXT,
    private_key     TEXT,
    issued_ts       BIGINT,
    wanted          TEXT,
    failures        BIGINT NOT NULL,
    next_attempt_ts BIGINT NOT NULL,
    last_error      TEXT,
    renewal_asked   BOOLEAN NOT NULL
);

-- What is shown to a certificate authority, by any replica. subject: a token, or a name.
CREATE TABLE acme_proofs (
    kind       TEXT NOT NULL,
    subject    TEXT NOT NULL,
    value      TEXT NOT NULL,
    created_ts BIGINT NOT NULL,
    PRIMARY KEY (kind, subject)
);
