"""The checkout itself: its paths, files, locks, git, servers' profile, progress and settings."""
