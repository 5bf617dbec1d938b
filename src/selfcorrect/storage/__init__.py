"""Everything on disk: run, evaluation and comparison directories, episode logs, provenance."""
