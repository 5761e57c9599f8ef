-- Repositories are watched: what is polled where, how far a walk came, what each credential may still ask for.

-- Each forge counts its repositories by itself: `github`, or the address of another forge's API.
ALTER TABLE kb.repository ADD COLUMN forge text NOT NULL DEFAULT 'github';
ALTER TABLE kb.repository DROP CONSTRAINT repository_external_id_key;
CREATE UNIQUE INDEX repository_external_id ON kb.repository (forge, external_id);

-- The newest observation of each repository is asked for every few seconds.
CREATE INDEX observation_of_repository ON kb.observation (repository_id, sequence);

-- What belongs to one repository is found when it is to be forgotten.
CREATE INDEX embedding_passage ON kb.embedding (passage_hash);
CREATE INDEX indexed_observation_sequence ON kb.indexed_observation (sequence);

-- Names that a repository had before it was renamed; questions and imports still use them.
CREATE TABLE kb.former_name (
    former_name text NOT NULL,
    repository_id bigint NOT NULL REFERENCES kb.repository ON DELETE CASCADE,
    renamed_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX former_name_name ON kb.former_name (lower(former_name));
CREATE INDEX former_name_repository ON kb.former_name (repository_id);

-- The watch list, and the state of polling of each repository on it.
CREATE TABLE kb.watch (
    repository_id bigint PRIMARY KEY REFERENCES kb.repository ON DELETE CASCADE,
    source text NOT NULL CHECK (source IN ('github', 'gitea')),
    -- Null: the address in the settings.
    api_url text,
    -- Null: the interval and the limit in the settings.
    every_s integer CHECK (every_s > 0),
    stale_after_s integer CHECK (stale_after_s > 0),
    added_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL,
    polled_at timestamptz,
    outcome text CHECK (outcome IN ('changed', 'unchanged', 'partial', 'failed')),
    -- When the source's own name and number of the repository were last looked up.
    identified_at timestamptz,
    truncated boolean NOT NULL DEFAULT false,
    -- How often in a row polling has failed; 0: it has not.
    failures integer NOT NULL DEFAULT 0,
    reason text,
    detail text,
    failing_since timestamptz
);
CREATE INDEX watch_due ON kb.watch (due_at);

-- The pages of a repository's list as a credential last saw them, written in the transaction that wrote their releases:
-- an answer "not modified" therefore speaks of what is in the log.
CREATE TABLE kb.page (
    repository_id bigint NOT NULL REFERENCES kb.repository ON DELETE CASCADE,
    credential text NOT NULL,
    ordinal integer NOT NULL,
    url text NOT NULL,
    etag text,
    next_url text,
    records integer NOT NULL,
    release_ids bigint[] NOT NULL,
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (repository_id, credential, ordinal)
);

-- Releases of the log that a complete walk did not find. `absences`: in how many polls the source said of the release
-- itself that it is not there; 0 when it is there after all, and only the list left it out.
CREATE TABLE kb.absence (
    repository_id bigint NOT NULL REFERENCES kb.repository ON DELETE CASCADE,
    release_id bigint NOT NULL,
    absences integer NOT NULL,
    first_missed_at timestamptz NOT NULL,
    asked_at timestamptz,
    PRIMARY KEY (repository_id, release_id)
);

-- What each credential may still ask for. No secret is here: a name is made from a fingerprint.
CREATE TABLE kb.credential (
    name text PRIMARY KEY,
    rate_limit integer,
    remaining integer,
    reset_at timestamptz,
    blocked_until timestamptz,
    blocked_reason text,
    strikes integer NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL
);

-- Requests by hour, credential and kind of answer, for charts.
CREATE TABLE kb.request_tally (
    hour timestamptz NOT NULL,
    credential text NOT NULL,
    answer text NOT NULL,
    requests bigint NOT NULL,
    PRIMARY KEY (hour, credential, answer)
);

-- What a person should know of. One row while it lasts; `resolved_at` ends it.
CREATE TABLE kb.alert (
    alert_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    subject text NOT NULL,
    severity text NOT NULL CHECK (severity IN ('warning', 'error')),
    message text NOT NULL,
    raised_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    resolved_at timestamptz,
    -- When the webhook took the alert, and the news that it is over.
    told_at timestamptz,
    told_resolved_at timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    last_error text
);
CREATE UNIQUE INDEX alert_open ON kb.alert (kind, subject) WHERE resolved_at IS NULL;
CREATE INDEX alert_untold ON kb.alert (alert_id) WHERE told_at IS NULL OR told_resolved_at IS NULL;

-- A person may have a repository forgotten; that it happened is not.
CREATE TABLE kb.forgotten_repository (
    name text NOT NULL,
    forge text NOT NULL,
    external_id bigint,
    observations bigint NOT NULL,
    forgotten_at timestamptz NOT NULL DEFAULT now()
);

-- Only a transaction that says so may delete from the log, and it must be of one repository (store/forgetting.py).
CREATE OR REPLACE FUNCTION kb.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('kb.forgetting', true) = 'on' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the release log is append-only' USING HINT = 'append an observation instead';
END $$;

CREATE VIEW kb.watched_repositories AS
SELECT r.name AS repository, w.source, w.api_url, r.external_id, w.every_s, w.stale_after_s, w.added_at, w.due_at,
       w.polled_at, r.verified_at, w.outcome, w.truncated, w.failures, w.reason, w.detail, w.failing_since
FROM kb.watch w JOIN kb.repository r USING (repository_id);

CREATE VIEW kb.credentials AS
SELECT name AS credential, rate_limit, remaining, reset_at, blocked_until, blocked_reason, updated_at
FROM kb.credential;

CREATE VIEW kb.alerts AS
SELECT alert_id, kind, subject, severity, message, raised_at, last_seen_at, resolved_at, told_at, last_error
FROM kb.alert;
