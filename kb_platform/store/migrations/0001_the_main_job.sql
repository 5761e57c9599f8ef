-- Tables are named in the singular and are ours to change; views are named in the plural and are the interface
-- (docs/data-model.md describes them column by column).

CREATE TABLE kb.repository (
    repository_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    -- GitHub's numeric id, once a source has told it: renames keep it.
    external_id bigint UNIQUE,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    verified_at timestamptz
);
-- GitHub's names are case-insensitive.
CREATE UNIQUE INDEX repository_name ON kb.repository (lower(name));

-- The append-only log. A release is known by (repository_id, release_id); its current state is its last observation.
CREATE TABLE kb.observation (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id bigint NOT NULL REFERENCES kb.repository,
    release_id bigint NOT NULL,
    observed_at timestamptz NOT NULL,
    origin text NOT NULL,
    content_hash bytea NOT NULL,
    deleted boolean NOT NULL DEFAULT false,
    tag text NOT NULL,
    name text NOT NULL,
    body text NOT NULL,
    created_at timestamptz,
    published_at timestamptz,
    prerelease boolean NOT NULL,
    draft boolean NOT NULL,
    url text NOT NULL,
    author text,
    version_key text COLLATE "C",
    raw bytea NOT NULL
);
CREATE INDEX observation_of_release ON kb.observation (repository_id, release_id, observed_at DESC, sequence DESC);

CREATE FUNCTION kb.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the release log is append-only' USING HINT = 'append an observation instead';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON kb.observation
    FOR EACH STATEMENT EXECUTE FUNCTION kb.refuse_change();

CREATE TABLE kb.quarantined_record (
    quarantine_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- sha256 of the bytes: the same bad record seen again counts an attempt, it adds no row.
    fingerprint bytea NOT NULL UNIQUE,
    repository text,
    origin text NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL,
    raw bytea NOT NULL,
    raw_bytes bigint NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    attempts integer NOT NULL DEFAULT 1,
    resolved_at timestamptz,
    resolution text
);
CREATE INDEX quarantined_record_open ON kb.quarantined_record (reason) WHERE resolved_at IS NULL;

-- A passage is a text as it is embedded; its key is its sha256, so one text is embedded once per model.
CREATE TABLE kb.passage (
    passage_hash bytea PRIMARY KEY,
    text text NOT NULL
);

-- Chunks belong to an observation, which never changes; so neither do they. An index version may therefore refer
-- to them while a newer observation of the same release is being chunked.
CREATE TABLE kb.chunk (
    sequence bigint NOT NULL REFERENCES kb.observation,
    chunker text NOT NULL,
    ordinal integer NOT NULL,
    chunk_id bytea NOT NULL,
    role text NOT NULL,
    kind text NOT NULL,
    span_start integer NOT NULL,
    span_end integer NOT NULL,
    text text NOT NULL,
    headings text[] NOT NULL,
    reference jsonb NOT NULL,
    -- Both are null for what is not searched: headings and bare markup.
    passage_hash bytea REFERENCES kb.passage,
    words sparsevec,
    terms integer[],
    PRIMARY KEY (sequence, chunker, ordinal)
);
CREATE INDEX chunk_passage ON kb.chunk (passage_hash);

-- An observation that was chunked, even into nothing.
CREATE TABLE kb.chunked_observation (
    sequence bigint NOT NULL REFERENCES kb.observation,
    chunker text NOT NULL,
    chunks integer NOT NULL,
    searchable integer NOT NULL,
    PRIMARY KEY (sequence, chunker)
);

CREATE TABLE kb.model (
    model_id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key text NOT NULL UNIQUE,
    dimension integer NOT NULL,
    description jsonb NOT NULL
);

CREATE TABLE kb.embedding (
    model_id smallint NOT NULL REFERENCES kb.model,
    passage_hash bytea NOT NULL REFERENCES kb.passage,
    vector halfvec NOT NULL,
    PRIMARY KEY (model_id, passage_hash)
);

CREATE TABLE kb.index_version (
    version integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id smallint NOT NULL REFERENCES kb.model,
    chunker text NOT NULL,
    status text NOT NULL CHECK (status IN ('building', 'ready', 'retired', 'dropped')),
    provenance jsonb NOT NULL,
    gate jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    ready_at timestamptz,
    promoted_at timestamptz,
    retired_at timestamptz
);

-- The pointer that readers resolve: one row, flipped by promotion and rollback.
CREATE TABLE kb.serving (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version integer NOT NULL REFERENCES kb.index_version,
    previous_version integer REFERENCES kb.index_version
);

-- What a version holds of a repository; replaced in the transaction that changes its rows.
CREATE TABLE kb.index_repository (
    version integer NOT NULL REFERENCES kb.index_version,
    repository_id bigint NOT NULL REFERENCES kb.repository,
    log_sequence bigint NOT NULL,
    releases integer NOT NULL,
    chunks integer NOT NULL,
    refreshed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (version, repository_id)
);

-- The observations whose chunks a version holds; a refresh is the difference to the current ones.
CREATE TABLE kb.indexed_observation (
    version integer NOT NULL REFERENCES kb.index_version,
    repository_id bigint NOT NULL REFERENCES kb.repository,
    sequence bigint NOT NULL REFERENCES kb.observation,
    release_id bigint NOT NULL,
    chunks integer NOT NULL,
    PRIMARY KEY (version, repository_id, sequence)
);

-- Document frequencies, by repository: a refresh touches no other repository's rows, so two never wait for each other.
CREATE TABLE kb.index_term (
    version integer NOT NULL REFERENCES kb.index_version,
    term integer NOT NULL,
    repository_id bigint NOT NULL REFERENCES kb.repository,
    documents integer NOT NULL,
    PRIMARY KEY (version, term, repository_id)
);

-- Every promotion and rollback, with who forced what.
CREATE TABLE kb.promotion (
    promotion_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version integer NOT NULL REFERENCES kb.index_version,
    previous_version integer REFERENCES kb.index_version,
    action text NOT NULL CHECK (action IN ('promote', 'rollback')),
    forced boolean NOT NULL,
    gate jsonb,
    at timestamptz NOT NULL DEFAULT now()
);

CREATE VIEW kb.release_observations AS
SELECT r.name AS repository, o.release_id, o.tag, o.name, o.body, o.published_at, o.prerelease, o.draft, o.url,
       encode(o.content_hash, 'hex') AS content_hash, o.observed_at, o.sequence, o.origin, o.deleted,
       o.created_at, o.author, o.version_key, o.raw
FROM kb.observation o JOIN kb.repository r USING (repository_id);

CREATE FUNCTION kb.releases_as_of(moment timestamptz)
RETURNS SETOF kb.release_observations LANGUAGE sql STABLE AS $$
    SELECT v.* FROM (
        SELECT DISTINCT ON (repository_id, release_id) sequence, deleted
        FROM kb.observation WHERE observed_at <= moment
        ORDER BY repository_id, release_id, observed_at DESC, sequence DESC
    ) last JOIN kb.release_observations v USING (sequence) WHERE NOT last.deleted
$$;

CREATE VIEW kb.current_releases AS
SELECT r.name AS repository, o.release_id, o.tag, o.name, o.body, o.published_at, o.prerelease, o.draft, o.url,
       encode(o.content_hash, 'hex') AS content_hash, o.observed_at, o.sequence, o.created_at, o.author,
       o.version_key
FROM (
    SELECT DISTINCT ON (repository_id, release_id) *
    FROM kb.observation ORDER BY repository_id, release_id, observed_at DESC, sequence DESC
) o JOIN kb.repository r USING (repository_id)
WHERE NOT o.deleted;

CREATE VIEW kb.index_versions AS
SELECT v.version, CASE WHEN s.version IS NOT NULL THEN 'active' ELSE v.status END AS status,
       m.key AS model, m.dimension, v.chunker,
       (SELECT count(*) FROM kb.index_repository i WHERE i.version = v.version) AS repositories,
       (SELECT coalesce(sum(i.releases), 0) FROM kb.index_repository i WHERE i.version = v.version) AS releases,
       (SELECT coalesce(sum(i.chunks), 0) FROM kb.index_repository i WHERE i.version = v.version) AS chunks,
       v.created_at, v.ready_at, v.promoted_at, v.retired_at, v.provenance, v.gate
FROM kb.index_version v JOIN kb.model m USING (model_id) LEFT JOIN kb.serving s USING (version);

-- The chunks of the current releases, as the served index cuts them (before the first promotion: as the newest
-- version being built does).
CREATE VIEW kb.current_chunks AS
SELECT r.name AS repository, o.release_id, o.tag, encode(c.chunk_id, 'hex') AS chunk_id, c.kind,
       c.span_start, c.span_end, c.text, c.role, c.headings, c.reference, c.ordinal, c.sequence
FROM (
    SELECT DISTINCT ON (repository_id, release_id) *
    FROM kb.observation ORDER BY repository_id, release_id, observed_at DESC, sequence DESC
) o
JOIN kb.repository r USING (repository_id)
JOIN kb.chunk c USING (sequence)
WHERE NOT o.deleted AND NOT o.draft AND c.chunker = coalesce(
    (SELECT v.chunker FROM kb.serving s JOIN kb.index_version v USING (version)),
    (SELECT v.chunker FROM kb.index_version v ORDER BY v.version DESC LIMIT 1),
    c.chunker
);

CREATE VIEW kb.quarantine AS
SELECT quarantine_id, repository, origin, reason, detail, raw, raw_bytes, first_seen_at, last_seen_at, attempts,
       resolved_at, resolution
FROM kb.quarantined_record;

CREATE VIEW kb.repositories AS
SELECT r.name AS repository, r.external_id, r.first_seen_at, r.verified_at,
       (SELECT count(*) FROM (
            SELECT DISTINCT ON (o.release_id) o.deleted FROM kb.observation o WHERE o.repository_id = r.repository_id
            ORDER BY o.release_id, o.observed_at DESC, o.sequence DESC) last WHERE NOT last.deleted) AS releases,
       coalesce(i.chunks, 0) AS chunks, coalesce(i.releases, 0) AS indexed_releases, i.refreshed_at
FROM kb.repository r
LEFT JOIN kb.serving s ON true
LEFT JOIN kb.index_repository i ON i.version = s.version AND i.repository_id = r.repository_id;
