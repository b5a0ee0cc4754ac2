#!/usr/bin/python3
import sys

sys.path.insert(0, "/usr/share/shmtrace")
from tracer.__main__ import main

main()
