-- SPDX-License-Identifier: GPL-2.0-only
--
-- Captures of many hosts, merged: one SQLite file with all their rows. Its application_id is 0x73686d66 ("shmf"), and
-- its user_version is the schema version of the captures times 256, plus the version of what is here.
--
-- It has the tables of schema.sql, and each has two columns before the others:
--
--     host TEXT NOT NULL              as in session
--     session INTEGER NOT NULL        REFERENCES session: which capture it is of
--
-- Ids are other ones than in the captures, and are unique in the file: tables are joined as those of a capture. Where a
-- primary key is no id, and does not begin with one, session stands before it. The sums of touched are there for all
-- regions.

-- A row for each capture. Machines whose captures have one name are told apart: web1, web1 (2).
ALTER TABLE session ADD COLUMN latest INTEGER NOT NULL DEFAULT 0; -- 1: of the latest of its host, which reports count

-- What reports call it.
ALTER TABLE process ADD COLUMN alike TEXT;  -- together with those that are alike, as in --by command
ALTER TABLE process ADD COLUMN unit TEXT;   -- as in --by unit
ALTER TABLE region ADD COLUMN what TEXT;    -- as in --by what, without the question mark of a guess: opcache

-- Two views for people, of the latest captures of each host. Who made a region grow, when, by how much, and for what.
-- time is local text: '2026-11-25 14:00' <= time. pages are the host's own, of session.page_bytes: add up bytes.
CREATE VIEW growth AS
SELECT extent.host, extent.session, datetime(extent.first_ns / 1000000000, 'unixepoch', 'localtime') AS time,
       extent."end" - extent.start AS pages, (extent."end" - extent.start) * session.page_bytes AS bytes,
       region.what, extent.region, region.name, region.gone_ns,
       extent.process, process.tgid, process.command, process.alike, process.unit, process.exited_ns,
       label.script, label.request, label.file, label.query, label.title, label.text,
       extent.first_ns
FROM extent JOIN session ON session.id = extent.session AND session.latest
     JOIN region ON region.id = extent.region JOIN process ON process.id = extent.process
     LEFT JOIN label ON label.id = extent.label;

-- What there is of each host, of regions that are alike: all of it, whoever touched it.
CREATE VIEW held AS
SELECT region.host, region.what, count(*) AS regions,
       CAST(sum(1.0 * region.size_bytes) AS INTEGER) AS size_bytes, -- sizes alone may be too large to be added up
       sum(region.allocated_bytes) AS allocated_bytes,
       sum(region.allocated_bytes - ifnull(region.start_bytes, 0)) AS grown_bytes
FROM region JOIN session ON session.id = region.session AND session.latest
WHERE region.gone_ns IS NULL GROUP BY region.host, region.what;
