"""Measure this bus and its peers side by side: ``python -m benchmarks --quick``.

How it measures, so that the figures can be trusted and repeated:

- Each figure comes from a process of its own, one process at a time; the rounds of all peers are
  interleaved, and a table shows the median round.
- The bare loop, ``await handler(event)``, is measured in the same process, in turns with the peer;
  a ratio is always taken against that figure, never against another process's.
- The payload of every event is made inside the timed loop, in the peer's own form.
- Repetitions are calibrated (0.2 s per round at least), which warms up too. Before timing, counting
  handlers prove that every event arrives.
- ``gc.collect()`` and ``gc.freeze()`` come first, and the collector then stays on: a bus that makes
  cycles pays for them, but nobody pays for what the set-up left behind.
- An event reaches a peer of which nothing else is said as a model made anew, or as fields, where it knows no models;
  ``dispatch`` sends this bus an event type and a mapping, which it validates.
- A peer does what it does by default; where its adapter changes an option, the legend says so.

``python -m benchmarks --instructions`` counts instructions instead, of this bus alone, where valgrind is installed.
"""
