"""Hostile input, made at random, for everything that shmtrace reads.

A fuzzer is one file: how inputs are made (a strategy of hypothesis, of what JSON can hold, so that an input can be
kept, read and run again), and how one is given to the program. harness.py runs one input in a process of its own and
says how that ended; campaign.py runs many. test_fuzz.py is the short run, `python -m tests.fuzz` the long one.
"""
