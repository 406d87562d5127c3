"""The runners: each trains bundles of trials in a place of its own, and none decides a result."""
