"""One module a DVC stage, each a pure function with a thin command, and what they share."""
