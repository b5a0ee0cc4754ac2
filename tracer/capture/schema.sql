-- SPDX-License-Identifier: GPL-2.0-only
--
-- A capture: one SQLite file, all that a report needs. It says application_id 0x73686d74 ("shmt") and in user_version
-- which schema it has; whoever changes a table here raises SCHEMA_VERSION in capture.py.
--
-- Times end in _ns: nanoseconds since 1970, UTC. NULL is unknown. A page has 4096 bytes, whatever the region.
-- While the trace runs all of it is committed once a second; of one that was cut off, what is said to come at the end is
-- missing, and the rest is as of its last commit.

-- One row: the host, the tier, when, what was lost.
CREATE TABLE session (
    version TEXT NOT NULL,                      -- of shmtrace
    host TEXT NOT NULL, kernel TEXT NOT NULL,
    tier TEXT NOT NULL,                         -- exact, faults or proc
    mechanism TEXT NOT NULL,                    -- kprobe, fentry or tracepoint; empty in proc
    label TEXT,                                 -- what --label asked for
    blind_to TEXT NOT NULL,                     -- what the tier does not see, one to a line
    started_ns INTEGER NOT NULL, ended_ns INTEGER NOT NULL,
    complete INTEGER NOT NULL DEFAULT 0,        -- 1: it came to its end; 0: it runs still, or was cut off at ended_ns
    sum_of_rss_bytes INTEGER,                   -- of the tree's processes, as ps would add them up; comes at the end
    private_start_bytes INTEGER, private_end_bytes INTEGER, -- private memory of the tree; NULL until the end
    private_how TEXT,                           -- memory.stat: exact, of cgroups that hold nothing else; or
                                                -- status: at most, what forked processes still share counts for each
    shmem_total_bytes INTEGER,                  -- of the host, Shmem of /proc/meminfo
    lost_events INTEGER NOT NULL DEFAULT 0, lost_pages INTEGER NOT NULL DEFAULT 0,
    lost_probes INTEGER NOT NULL DEFAULT 0,
    warnings TEXT NOT NULL DEFAULT '',          -- one to a line
    self_cpu_seconds REAL, self_rss_bytes INTEGER, attach_seconds REAL
);

-- A process is (tgid, start_time_ns), dead or alive: the time counts from boot and tells two lives of one PID apart.
CREATE TABLE process (
    id INTEGER PRIMARY KEY,
    tgid INTEGER NOT NULL,
    start_time_ns INTEGER NOT NULL,             -- 0: nothing of it is known but the PID
    ns_tgid INTEGER,                            -- its PID in its own PID namespace; NULL: the same, or not known
    parent INTEGER REFERENCES process, parent_tgid INTEGER,
    comm TEXT, command TEXT,
    cgroup TEXT,                                -- path of it in the unified hierarchy, or in memory's
    started_ns INTEGER, exited_ns INTEGER,
    outside_tree INTEGER NOT NULL DEFAULT 0     -- 1: not of the tree, but it touched a region of the tree's
);

-- Programs that processes of the tree have executed. A server that is told to reload may execute itself.
CREATE TABLE exec (
    time_ns INTEGER NOT NULL, process INTEGER NOT NULL REFERENCES process, comm TEXT, command TEXT
);

-- A region is one shmem inode, however many processes map it. SysV numbers inodes by shmid: only the generation tells.
CREATE TABLE region (
    id INTEGER PRIMARY KEY,
    dev INTEGER NOT NULL, ino INTEGER NOT NULL, generation INTEGER,
    kind TEXT NOT NULL,                         -- anon, memfd, sysv, posix, hugetlb or other
    name TEXT NOT NULL,
    created_ns INTEGER, gone_ns INTEGER,
    creator INTEGER REFERENCES process,
    creator_how TEXT,                           -- traced, shmget (the kernel's own record) or inferred
    parent INTEGER REFERENCES process,          -- the process that the region rolls up to
    size_bytes INTEGER, allocated_bytes INTEGER, -- at the end, or when its last user let go of it
    peak_bytes INTEGER, resident_bytes INTEGER, swapped_bytes INTEGER,
    start_bytes INTEGER,                        -- allocated when the capture of it began
    address INTEGER                             -- where it was last seen mapped
);

-- What a process was doing when it touched pages, in its own words, where --label asked for that; cut at 128 bytes. All
-- NULL: nothing that has a name, as between two requests.
CREATE TABLE label (
    id INTEGER PRIMARY KEY,
    script TEXT, request TEXT,                  -- php: the script's path, the request's URI
    file TEXT,                                  -- php:file: what was compiled last in the request, included or the script
    query TEXT, title TEXT,                     -- postgres: and the title of its backend
    text TEXT                                   -- BINARY:SYMBOL
);

-- Pages [start, end) of a region that are there at the end, and who first touched them: one process, within a second.
-- process NULL: they were there when the capture began. label NULL: unknown, or not asked for.
CREATE TABLE extent (
    region INTEGER NOT NULL REFERENCES region, start INTEGER NOT NULL, "end" INTEGER NOT NULL,
    process INTEGER REFERENCES process, first_ns INTEGER, last_ns INTEGER,
    label INTEGER REFERENCES label,
    PRIMARY KEY (region, start)
) WITHOUT ROWID;

-- What else a process did to a region.
CREATE TABLE usage (
    region INTEGER NOT NULL REFERENCES region, process INTEGER NOT NULL REFERENCES process,
    faults INTEGER,                             -- growth or not; NULL: not counted
    freed_pages INTEGER NOT NULL,               -- of those it touched first, given back since
    PRIMARY KEY (region, process)
) WITHOUT ROWID;

-- With --stacks: user stacks, and how many pages of a region a process made by each, given back since or not.
CREATE TABLE stack (
    id INTEGER PRIMARY KEY,
    frames TEXT                                 -- one to a line, callers first: functions, or file+address; NULL: lost
);
CREATE TABLE stacked (
    region INTEGER NOT NULL REFERENCES region, process INTEGER NOT NULL REFERENCES process,
    stack INTEGER NOT NULL REFERENCES stack,
    pages INTEGER NOT NULL,                     -- 0: they turned out to be of another stack
    PRIMARY KEY (region, process, stack)
) WITHOUT ROWID;

-- Pages that a process made in, or for, the address space of another.
CREATE TABLE made_for (
    region INTEGER NOT NULL REFERENCES region, process INTEGER NOT NULL REFERENCES process,
    for_process INTEGER NOT NULL REFERENCES process, pages INTEGER NOT NULL,
    PRIMARY KEY (region, process, for_process)
) WITHOUT ROWID;

-- Which processes have which part of a region mapped where; comes at the end.
CREATE TABLE mapping (
    region INTEGER NOT NULL REFERENCES region, process INTEGER NOT NULL REFERENCES process,
    address INTEGER NOT NULL, first_page INTEGER NOT NULL, pages INTEGER NOT NULL
);

-- Of the whole host: shared memory that no process had mapped at the end.
CREATE TABLE unmapped (
    kind TEXT NOT NULL,                         -- sysv: nobody is attached; held: by descriptors alone; tmpfs: the files
                                                -- of one that are neither mapped nor held so; file: one of its largest
    name TEXT NOT NULL,
    reach TEXT NOT NULL,                        -- where it is reached: a shmid, /proc/PID/fd/N, or a path
    allocated_bytes INTEGER NOT NULL, swapped_bytes INTEGER,
    size_bytes INTEGER,                         -- of a tmpfs its limit
    creator INTEGER, creator_command TEXT,      -- tgid
    last_user INTEGER, last_user_command TEXT,  -- of a SysV segment
    used_ns INTEGER,                            -- when that was
    holders INTEGER, holder INTEGER, holder_command TEXT, -- how many processes, and one of them
    files INTEGER                               -- of a tmpfs, how many inodes
);

-- What a region had, by its inode's own count, whenever that had changed.
CREATE TABLE sample (
    region INTEGER NOT NULL REFERENCES region, time_ns INTEGER NOT NULL,
    allocated_bytes INTEGER NOT NULL, resident_bytes INTEGER, swapped_bytes INTEGER,
    PRIMARY KEY (region, time_ns)
) WITHOUT ROWID;

-- And what the host had: Shmem of /proc/meminfo.
CREATE TABLE host_sample (time_ns INTEGER PRIMARY KEY, shmem_bytes INTEGER NOT NULL);

-- For the eye: who made a region grow, when, by how much. Times are local, and text: '2026-11-25 14:00' < time.
CREATE VIEW growth AS
SELECT datetime(extent.first_ns / 1000000000, 'unixepoch', 'localtime') AS time,
       (extent."end" - extent.start) * 4096 AS bytes,
       extent.process, process.tgid, process.command,
       datetime(process.exited_ns / 1000000000, 'unixepoch', 'localtime') AS exited,
       extent.region, region.name, datetime(region.gone_ns / 1000000000, 'unixepoch', 'localtime') AS gone
FROM extent JOIN region ON region.id = extent.region JOIN process ON process.id = extent.process;
