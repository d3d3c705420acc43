"""An evaluation from its plan to its record: runner, journal, ranks, rows."""
