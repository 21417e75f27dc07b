"""What the coordinator remembers: a database of jobs, rounds, clients and models, and its blobs.

The repositories (`clients`, `jobs`, `plans`, `rounds`, `blobs`, `events`) are functions that take a
session first; they run inside `Database.write`. `history` reads; it runs inside `Database.read`.
All of them return the frozen records of `records`, never rows.
"""
