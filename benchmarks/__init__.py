"""How fast and how accurate Recast is, compared with peers and with published figures."""
