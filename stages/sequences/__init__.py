"""Whole sequences: the stages `ingest`, `normalize` (`encode`) and `window` (`cut`), and `reading` what they wrote."""
