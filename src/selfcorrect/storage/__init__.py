"""What lies on disk: run and evaluation directories, episode logs, provenance."""
