-- SPDX-License-Identifier: GPL-2.0-only
--
-- A capture: one SQLite file with all that a report needs. Its application_id is 0x73686d74 ("shmt"), and its
-- user_version is the schema version. If you change a table here, raise SCHEMA_VERSION in capture.py.
--
-- Columns that end in _ns are nanoseconds since 1970, UTC. NULL means unknown. A page has 4096 bytes in all regions. A
-- running trace commits once a second. If it was cut off, values written at its end are missing, and all others are as
-- of the last commit.

-- One row: the host, the tier, the time, and what was lost.
CREATE TABLE session (
    version TEXT NOT NULL,                      -- of shmtrace
    host TEXT NOT NULL, kernel TEXT NOT NULL,
    tier TEXT NOT NULL,                         -- exact, faults or proc
    mechanism TEXT NOT NULL,                    -- kprobe, fentry or tracepoint; empty in proc
    label TEXT,                                 -- as given to --label
    tmpfs TEXT,                                 -- the tmpfs given to -p: only its files are regions here
    blind_to TEXT NOT NULL,                     -- what the tier does not see, one per line
    started_ns INTEGER NOT NULL, ended_ns INTEGER NOT NULL,
    complete INTEGER NOT NULL DEFAULT 0,        -- 1: finished; 0: still running, or cut off at ended_ns
    part INTEGER, part_started_ns INTEGER,      -- of a trace that --rotate cuts into parts: which, from 1 on, and since
                                                -- when; of what was over by then only owners of pages are here
    sum_of_rss_bytes INTEGER,                   -- summed over the tree as ps shows it; written at the end
    private_start_bytes INTEGER, private_end_bytes INTEGER, -- private memory of the tree
    private_peak_bytes INTEGER,                 -- the most that was measured
    private_how TEXT,                           -- memory.stat: exact, from cgroups that hold nothing else; or
                                                -- status: upper bound, pages shared by fork count for each process
    shmem_total_bytes INTEGER,                  -- Shmem of the host's /proc/meminfo
    lost_events INTEGER NOT NULL DEFAULT 0, lost_pages INTEGER NOT NULL DEFAULT 0,
    lost_probes INTEGER NOT NULL DEFAULT 0,
    nr_ooms INTEGER,                            -- kills of the OOM killer on the host while the trace ran
    warnings TEXT NOT NULL DEFAULT '',          -- one per line
    self_cpu_seconds REAL, self_rss_bytes INTEGER, attach_seconds REAL
);

-- A process is (tgid, start_time_ns). The start time counts from boot, and distinguishes processes with a reused PID.
CREATE TABLE process (
    id INTEGER PRIMARY KEY,
    tgid INTEGER NOT NULL,
    start_time_ns INTEGER NOT NULL,             -- 0: only the PID is known
    ns_tgid INTEGER,                            -- its PID in its own PID namespace; NULL: the same, or unknown
    parent INTEGER REFERENCES process, parent_tgid INTEGER,
    comm TEXT, command TEXT,
    cgroup TEXT,                                -- path in the unified hierarchy, or in the memory controller's
    started_ns INTEGER, exited_ns INTEGER,
    exit_status INTEGER,                        -- as wait(2) tells it: exit code << 8, or the number of the signal
    oom_killed INTEGER,                         -- 1: by the OOM killer
    outside_tree INTEGER NOT NULL DEFAULT 0     -- 1: not of the tree, but it made or touched a region of it
);

-- What Kubernetes calls the pod and the container of a cgroup, by the kubelet's directories below /var/log: of those
-- cgroups that a process is in, or whose limit was reached in an OOM kill.
CREATE TABLE cgroup (
    path TEXT PRIMARY KEY,                      -- as in process.cgroup
    namespace TEXT NOT NULL, pod TEXT NOT NULL,
    container TEXT                              -- NULL: unknown, or the cgroup is the pod's own
) WITHOUT ROWID;

-- Programs that processes of the tree have executed. A server may execute itself when it reloads.
CREATE TABLE exec (
    time_ns INTEGER NOT NULL, process INTEGER NOT NULL REFERENCES process, comm TEXT, command TEXT
);

-- A region is one shmem inode, however many processes map it. A SysV segment's inode number is its shmid, which is
-- reused: only the generation is unique.
CREATE TABLE region (
    id INTEGER PRIMARY KEY,
    dev INTEGER NOT NULL, ino INTEGER NOT NULL, generation INTEGER,
    kind TEXT NOT NULL,                         -- anon, memfd, sysv, posix, hugetlb or other
    name TEXT NOT NULL,
    hint TEXT,                                  -- what its content says of its use
    created_ns INTEGER, gone_ns INTEGER,
    creator INTEGER REFERENCES process,
    creator_how TEXT,                           -- traced, shmget (the kernel's own record) or inferred
    parent INTEGER REFERENCES process,          -- the process that the region is attributed to
    size_bytes INTEGER, allocated_bytes INTEGER, -- at the end, or when its last user released it
    peak_bytes INTEGER, resident_bytes INTEGER, swapped_bytes INTEGER,
    start_bytes INTEGER,                        -- allocated when its capture began
    address INTEGER                             -- where it was last seen mapped
);

-- What a process said it was doing when it touched pages, if --label was given; cut at 128 bytes. All NULL: nothing
-- with a name, as between two requests.
CREATE TABLE label (
    id INTEGER PRIMARY KEY,
    script TEXT, request TEXT,                  -- php: the script's path, the request's URI
    file TEXT,                                  -- php:file: the script or included file compiled last
    query TEXT, title TEXT,                     -- postgres: the query, and the title of its backend
    text TEXT                                   -- BINARY:SYMBOL
);

-- Pages [start, end) of a region that exist at the end, first touched by one process within one second. process NULL:
-- they existed when the capture began. label NULL: unknown, or --label was not given.
CREATE TABLE extent (
    region INTEGER NOT NULL REFERENCES region, start INTEGER NOT NULL, "end" INTEGER NOT NULL,
    process INTEGER REFERENCES process, first_ns INTEGER, last_ns INTEGER,
    label INTEGER REFERENCES label,
    PRIMARY KEY (region, start)
) WITHOUT ROWID;

-- The extents of a region summed up, one row for each process and label; written with the region's last account, and
-- never changed. A region that has extents and no row here was not closed: the trace still runs, or was cut off.
CREATE TABLE touched (
    region INTEGER NOT NULL REFERENCES region, process INTEGER REFERENCES process,
    label INTEGER REFERENCES label,
    pages INTEGER NOT NULL,
    first_ns INTEGER, last_ns INTEGER           -- of the pages that exist
);

-- What else a process did to a region.
CREATE TABLE usage (
    region INTEGER NOT NULL REFERENCES region, process INTEGER NOT NULL REFERENCES process,
    faults INTEGER,                             -- all page faults, also on existing pages; NULL: not counted
    freed_pages INTEGER NOT NULL,               -- pages it touched first that were given back since
    PRIMARY KEY (region, process)
) WITHOUT ROWID;

-- With --stacks: user stacks, and the pages of a region that a process made by each, including those given back since.
CREATE TABLE stack (
    id INTEGER PRIMARY KEY,
    frames TEXT                                 -- functions or file+address, one per line, callers first; NULL: lost
);
CREATE TABLE stacked (
    region INTEGER NOT NULL REFERENCES region, process INTEGER NOT NULL REFERENCES process,
    stack INTEGER NOT NULL REFERENCES stack,
    pages INTEGER NOT NULL,                     -- 0: they turned out to belong to another stack
    PRIMARY KEY (region, process, stack)
) WITHOUT ROWID;

-- Segments of code that frames of stacks are in, laid out as their file says, from and to whole pages.
CREATE TABLE binary (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL,
    build_id TEXT,                              -- in hexadecimal
    address INTEGER NOT NULL,                   -- where it begins; if the layout of the file is unknown, the offset
    size_bytes INTEGER NOT NULL,
    offset_bytes INTEGER NOT NULL               -- in the file
);
-- Where the code of a frame is; those of no file have no row.
CREATE TABLE frame (
    stack INTEGER NOT NULL REFERENCES stack,
    line INTEGER NOT NULL,                      -- of stack.frames, from 0 on
    binary INTEGER NOT NULL REFERENCES binary,
    address INTEGER NOT NULL,                   -- as addr2line takes it; of a named function, where it begins
    PRIMARY KEY (stack, line)
) WITHOUT ROWID;

-- Pages that a process made in the address space of another, or for it.
CREATE TABLE made_for (
    region INTEGER NOT NULL REFERENCES region, process INTEGER NOT NULL REFERENCES process,
    for_process INTEGER NOT NULL REFERENCES process, pages INTEGER NOT NULL,
    PRIMARY KEY (region, process, for_process)
) WITHOUT ROWID;

-- Which process maps which part of a region at which address; written at the end.
CREATE TABLE mapping (
    region INTEGER NOT NULL REFERENCES region, process INTEGER NOT NULL REFERENCES process,
    address INTEGER NOT NULL, first_page INTEGER NOT NULL, pages INTEGER NOT NULL
);

-- Shared memory of the whole host that no process had mapped at the end.
CREATE TABLE unmapped (
    kind TEXT NOT NULL,                         -- sysv: attached by no process; held: only by open descriptors; tmpfs:
                                                -- files that are neither mapped nor held; file: one of its largest
    name TEXT NOT NULL,
    reach TEXT NOT NULL,                        -- how to access it: a shmid, /proc/PID/fd/N, or a path
    allocated_bytes INTEGER NOT NULL, swapped_bytes INTEGER,
    size_bytes INTEGER,                         -- for tmpfs: its limit
    creator INTEGER, creator_command TEXT,      -- tgid
    last_user INTEGER, last_user_command TEXT,  -- tgid, of a SysV segment
    used_ns INTEGER,                            -- when last_user used it
    holders INTEGER, holder INTEGER, holder_command TEXT, -- number of processes, and one of them
    files INTEGER                               -- for tmpfs: number of inodes
);

-- The size of a region by its inode's own count, whenever it had changed.
CREATE TABLE sample (
    region INTEGER NOT NULL REFERENCES region, time_ns INTEGER NOT NULL,
    allocated_bytes INTEGER NOT NULL, resident_bytes INTEGER, swapped_bytes INTEGER,
    PRIMARY KEY (region, time_ns)
) WITHOUT ROWID;

-- The same for the host: Shmem of /proc/meminfo.
CREATE TABLE host_sample (time_ns INTEGER PRIMARY KEY, shmem_bytes INTEGER NOT NULL);

-- What the OOM killer did, to processes of the tree and others: at most 64 kills. session.nr_ooms counts all.
CREATE TABLE oom (
    id INTEGER PRIMARY KEY,
    time_ns INTEGER NOT NULL,
    process INTEGER REFERENCES process,         -- the victim; NULL: it is not of this capture
    tgid INTEGER NOT NULL, comm TEXT NOT NULL, command TEXT,
    cgroup TEXT,                                -- the victim's, as in process
    limit_cgroup TEXT, limit_bytes INTEGER,     -- the cgroup whose limit was reached; / without limit_bytes: none's,
                                                -- the host was short of memory
    anon_bytes INTEGER, file_bytes INTEGER, shmem_bytes INTEGER, -- in the victim's memory when it was chosen
    shmem_before_bytes INTEGER, anon_before_bytes INTEGER, -- what the limit's cgroup is charged for by memory.stat, or
                                                -- the host has, when the kill was heard of: some may be freed by then
    shmem_after_bytes INTEGER, anon_after_bytes INTEGER -- the same when the victim was gone
);

-- Who had first touched the pages of regions that are charged there: as of the first checkpoint after the kill.
CREATE TABLE oom_touched (
    oom INTEGER NOT NULL REFERENCES oom, region INTEGER NOT NULL REFERENCES region,
    process INTEGER NOT NULL REFERENCES process, pages INTEGER NOT NULL,
    PRIMARY KEY (oom, region, process)
) WITHOUT ROWID;

-- A view for people: who made a region grow, when, and by how much. Times are local text: '2026-11-25 14:00' < time.
CREATE VIEW growth AS
SELECT datetime(extent.first_ns / 1000000000, 'unixepoch', 'localtime') AS time,
       (extent."end" - extent.start) * 4096 AS bytes,
       extent.process, process.tgid, process.command,
       datetime(process.exited_ns / 1000000000, 'unixepoch', 'localtime') AS exited,
       extent.region, region.name, datetime(region.gone_ns / 1000000000, 'unixepoch', 'localtime') AS gone
FROM extent JOIN region ON region.id = extent.region JOIN process ON process.id = extent.process;
