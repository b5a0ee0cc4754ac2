"""The command line: all of click is here. A command parses, runs one pipeline, renders."""

from __future__ import annotations

import click
import sys, os, signal, time


@click.command()
@click.option("-p", "names", multiple=True)
@click.option("-d", "seconds", type=float)
@click.option("--json", "as_json", is_flag=True)
@click.argument("command", nargs=-1)
def main(names, seconds, as_json, command):
    from tracer import account, targets
    from tracer.capture import Capture
    from tracer.trace import Trace
    from tracer.views import json as js
    wanted = targets.parse(names)
    if command:
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(w); os.read(r, 1); os.execvp(command[0], command)
        os.close(r)
        wanted = wanted._replace(tgids=frozenset([pid]))
    with Capture() as capture, Trace(capture, wanted) as trace:
        def stop(*_): trace.stopping = True
        signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)
        if command:
            os.write(w, b"x"); os.close(w)
            status = None
            while status is None and not trace.stopping:
                trace.run(0.05)
                p, st = os.waitpid(pid, os.WNOHANG)
                if p: status = os.waitstatus_to_exitcode(st)
        else:
            trace.run(seconds or 1e9)
        trace.finish()
        print(js.render(account.read(capture)))
