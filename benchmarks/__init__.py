"""How fast Recast is, measured side by side with a peer in one run."""
