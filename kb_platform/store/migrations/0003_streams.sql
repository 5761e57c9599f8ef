-- Streams: how far each topic was read, what its events said of each release, and what could not be understood.

-- When a forge says that a release was last changed, where it says so.
ALTER TABLE kb.observation ADD COLUMN revised_at timestamptz;

-- When an event last told the repository's name; an older event does not name it back.
ALTER TABLE kb.repository ADD COLUMN named_at timestamptz;

-- A topic as a consumer group of ours reads it. Null topic_id: not read yet.
CREATE TABLE kb.stream (
    consumer_group text NOT NULL,
    topic text NOT NULL,
    topic_id text,
    added_at timestamptz NOT NULL DEFAULT now(),
    -- When brokers last told the watermarks, and since when they do not answer.
    looked_at timestamptz,
    unreachable_since timestamptz,
    -- Why reading cannot go on: the slug of PositionLost, in words, and since when.
    trouble text,
    trouble_detail text,
    trouble_since timestamptz,
    PRIMARY KEY (consumer_group, topic)
);

-- `next_offset` moves in the transaction that writes the records before it, and only from where that transaction began.
-- `records`, `bytes`, `quarantined`: handed over by this partition so far, each record once.
CREATE TABLE kb.stream_partition (
    consumer_group text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL,
    records bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    quarantined bigint NOT NULL DEFAULT 0,
    landed_at timestamptz,
    -- Watermarks as brokers last told them; the high one is the last stable offset.
    low bigint,
    high bigint,
    PRIMARY KEY (consumer_group, topic, partition),
    FOREIGN KEY (consumer_group, topic) REFERENCES kb.stream ON DELETE CASCADE
);

-- Positions that a person has set.
CREATE TABLE kb.stream_reset (
    reset_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    consumer_group text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    from_topic_id text,
    to_topic_id text NOT NULL,
    from_offset bigint,
    to_offset bigint NOT NULL,
    trouble text,
    requested_by text NOT NULL
);

-- The newest event of each release: an older one that comes late does not overwrite what this one said, also where it
-- said nothing new. The order of events is that of (revised_at, event_at), and of offsets in one partition.
CREATE TABLE kb.stream_head (
    repository_id bigint NOT NULL REFERENCES kb.repository ON DELETE CASCADE,
    release_id bigint NOT NULL,
    revised_at timestamptz NOT NULL,
    event_at timestamptz NOT NULL,
    topic_id text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    -- Times after now count as now, for a producer with a wrong clock would overrule all others for years. The latest such
    -- time: an event up to it that stood before this one is not a newer state when it is read again.
    future_until timestamptz,
    PRIMARY KEY (repository_id, release_id)
);

-- Where a quarantined record stood, and what came with it. `headers`: [[name, base64 or null], …] in their order.
CREATE TABLE kb.quarantined_message (
    quarantine_id bigint PRIMARY KEY REFERENCES kb.quarantined_record ON DELETE CASCADE,
    topic text NOT NULL,
    topic_id text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    "timestamp" timestamptz,
    key bytea,
    headers jsonb NOT NULL,
    -- A message without a value is not one with an empty value.
    has_value boolean NOT NULL DEFAULT true
);

-- What is to be, or was, published to a dead-letter topic. `letter` goes along as a header: who was killed between
-- publishing and noting it finds it there.
CREATE TABLE kb.dead_letter (
    quarantine_id bigint PRIMARY KEY REFERENCES kb.quarantined_record ON DELETE CASCADE,
    letter uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    topic text NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz
);
CREATE INDEX dead_letter_waiting ON kb.dead_letter (topic, quarantine_id) WHERE published_at IS NULL;

-- Up to where a dead-letter topic was compared with the table above.
CREATE TABLE kb.dead_letter_position (
    topic text NOT NULL,
    partition integer NOT NULL,
    topic_id text NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (topic, partition)
);

CREATE OR REPLACE VIEW kb.release_observations AS
SELECT r.name AS repository, o.release_id, o.tag, o.name, o.body, o.published_at, o.prerelease, o.draft, o.url,
       encode(o.content_hash, 'hex') AS content_hash, o.observed_at, o.sequence, o.origin, o.deleted,
       o.created_at, o.author, o.version_key, o.raw, o.revised_at
FROM kb.observation o JOIN kb.repository r USING (repository_id);

CREATE OR REPLACE VIEW kb.quarantine AS
SELECT q.quarantine_id, q.repository, q.origin, q.reason, q.detail, q.raw, q.raw_bytes, q.first_seen_at, q.last_seen_at,
       q.attempts, q.resolved_at, q.resolution, m.topic, m.topic_id, m.partition, m."offset", m."timestamp", m.key,
       m.headers, m.has_value, d.published_at AS dead_letter_at
FROM kb.quarantined_record q
LEFT JOIN kb.quarantined_message m USING (quarantine_id)
LEFT JOIN kb.dead_letter d USING (quarantine_id);

CREATE VIEW kb.streams AS
SELECT s.consumer_group, s.topic, p.partition, s.topic_id, p.next_offset, p.low, p.high,
       greatest(p.high - greatest(p.next_offset, p.low), 0) AS lag, p.records, p.bytes, p.quarantined, p.landed_at,
       s.looked_at, s.unreachable_since, s.trouble, s.trouble_detail, s.trouble_since
FROM kb.stream s LEFT JOIN kb.stream_partition p USING (consumer_group, topic);

CREATE VIEW kb.stream_resets AS
SELECT reset_id, at, consumer_group, topic, partition, from_topic_id, to_topic_id, from_offset, to_offset, trouble,
       requested_by
FROM kb.stream_reset;
