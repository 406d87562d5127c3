"""The servers that the project starts for itself, its backups, and the devices on which it trains."""
